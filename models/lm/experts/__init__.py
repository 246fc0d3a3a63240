"""Several language models at once: products, contrasts and mixtures, over one vocabulary or over bytes. See docs/experts.md."""

from posterity.models.lm.experts.authors import authors, log_probs
from posterity.models.lm.experts.globally import globally
from posterity.models.lm.experts.mixture import mixture
from posterity.models.lm.experts.over_bytes import over_bytes
from posterity.models.lm.experts.prompted import prompted
from posterity.models.lm.experts.together import contrast, product

__all__ = ["authors", "contrast", "globally", "log_probs", "mixture", "over_bytes", "product", "prompted"]
