"""Language models behind OpenAI-compatible servers: calls that lose nothing, programs over them, and a server of one's own. See docs/remote.md."""

from posterity.models.lm.remote.client import Patience, Remote, connect
from posterity.models.lm.remote.completion import Completion
from posterity.models.lm.remote.ledger import Budget, BudgetExhausted, Ledger
from posterity.models.lm.remote.run_log import RunLog
from posterity.models.lm.remote.server import Server, serve
from posterity.models.lm.remote.steps import Written, steps

__all__ = ["Budget", "BudgetExhausted", "Completion", "Ledger", "Patience", "Remote", "RunLog", "Server", "Written", "connect", "serve", "steps"]
