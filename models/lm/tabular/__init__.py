"""Language models that are tables: n-grams, hidden Markov models, probabilistic grammars. What programs over them mean, `po.exact` says exactly."""

from posterity.models.lm.tabular.hmm import hmm
from posterity.models.lm.tabular.ngram import ngram
from posterity.models.lm.tabular.pcfg import pcfg

__all__ = ["hmm", "ngram", "pcfg"]
