"""From laws that are normalised token by token to those of whole texts."""

from typing import Any

import jax
import jax.numpy as jnp

from posterity.models.lm.experts.mixture import Texts
from posterity.models.lm.experts.together import DEAD, Together
from posterity.models.lm.text import Text, TextSource
from posterity.ppl import component
from posterity.ppl.effects import Scan, factor
from posterity.ppl.program import FunctionProgram
from posterity.ppl.region import Rewriting, rewritten


class Globally(Rewriting):
    """Multiplies every step's weight by what its texts' scores sum to."""

    def scan(self, scan: Scan) -> Scan:
        sources = [text.source for text in component.parts(scan.init) if isinstance(text, Text)]
        if not sources:
            raise ValueError("globally: the program's scan has no text in its carry")
        for source in sources:
            if not (isinstance(source, TextSource) and isinstance(source.lm.decoder, (Together, Texts))):
                name = source.lm.name if isinstance(source, TextSource) else source
                raise ValueError(f"globally: {name} is no product, contrast or mixture of experts; its logits have no sum that means anything")

        def step(carry: Any, x: Any) -> Any:
            scores = [text.logits for text in component.parts(carry) if isinstance(text, Text) and text.logits is not None]
            for i, each in enumerate(scores):
                total = jax.scipy.special.logsumexp(each)
                factor(f"experts/{i}", jnp.where(total < DEAD / 2, -jnp.inf, total))
            return scan.step(carry, x)

        return scan._replace(step=step)


def globally(program: Any) -> FunctionProgram:
    """The program with texts weighed by what experts say of the whole of them: the product of exp(scores) of their tokens, not normalised.

    Law: tokens are drawn as before, by the local law, and each step is multiplied by what it was divided by, the sum of exp(scores). So
    under `generate` of a product a text weighs the product of its probabilities to the power of their weights; the evidence is the sum over all
    texts, which is the smaller the more the experts disagree. Every step must push a token. Changes of the law, temperature and the like, stay
    local; a temperature of the whole is a power of the weights. A mixture is normalised already: nothing changes.

    Args:
      program: one made by `@po.program` whose text is of `product`, `contrast` or `mixture`.

    Raises:
      TypeError: when the program is not made of a function.
      ValueError: from the inference, when its text is of another model, or it has none.

    >>> import jax.numpy as jnp, posterity as po
    >>> from posterity.models.programs.generate import generate
    >>> a, b = (po.tabular.ngram(text, order=1, smoothing=0) for text in ("xxy", "xyy"))
    >>> exact = po.exact(po.experts.globally(generate(po.experts.product([a, b]), "", max_tokens=1)))
    >>> round(float(jnp.exp(exact.log_evidence)), 4)      # 2/4 * 1/4 of x, as much of y, 1/4 * 1/4 of nothing
    0.3125
    """
    return rewritten(Globally, program, ())
