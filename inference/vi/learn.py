"""Learned parts of properly weighted algorithms: proposals for `po.propose`, twists for `po.twist`. Validity does not depend on what was learned."""

from posterity.inference.vi.proposals import LearnedProposals, filtering, proposals
from posterity.inference.vi.twists import LearnedTwist, linear, twist

__all__ = ["LearnedProposals", "LearnedTwist", "filtering", "linear", "proposals", "twist"]
