"""What weighs a text token by token: constraints as automata, and potentials of one's own. See docs/potentials.md."""

from posterity.models.potentials import check
from posterity.models.potentials.at_end import at_end
from posterity.models.potentials.automaton import Automaton
from posterity.models.potentials.grammar import Grammar, grammar
from posterity.models.potentials.json_schema import json_schema
from posterity.models.potentials.judge import Judge, judge
from posterity.models.potentials.judges import lm_judge, reward_model
from posterity.models.potentials.likelihood import likelihood, multifurcation
from posterity.models.potentials.potential import Potential
from posterity.models.potentials.regex import regex
from posterity.models.potentials.rejection import rejection
from posterity.models.potentials.safe import Safe, safe
from posterity.models.potentials.texts import at_most, contains, in_order, length, of_characters, stopped, until, without
from posterity.models.potentials.tokens import TokenAutomaton, over
from posterity.models.potentials.values import ValueHead, log_value, value_features, value_head, valued
from posterity.models.potentials.verifiers import Task, Verifier, equals, gym, verifier
from posterity.models.potentials.weighted import WeightedAutomaton, WeightedGrammar, weighted_automaton, weighted_grammar, weighted_texts

__all__ = [
    "Automaton",
    "Grammar",
    "Judge",
    "Potential",
    "Safe",
    "Task",
    "TokenAutomaton",
    "ValueHead",
    "Verifier",
    "WeightedAutomaton",
    "WeightedGrammar",
    "at_end",
    "at_most",
    "check",
    "contains",
    "equals",
    "grammar",
    "gym",
    "in_order",
    "json_schema",
    "judge",
    "length",
    "likelihood",
    "lm_judge",
    "log_value",
    "multifurcation",
    "of_characters",
    "over",
    "regex",
    "rejection",
    "reward_model",
    "safe",
    "stopped",
    "until",
    "value_features",
    "value_head",
    "valued",
    "verifier",
    "weighted_automaton",
    "weighted_grammar",
    "weighted_texts",
    "without",
]
