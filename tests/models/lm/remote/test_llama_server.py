"""Against llama.cpp's own server, with SmolLM2: what holds with our server holds with another's."""

import importlib.util
import re
import subprocess
import sys
import urllib.request

import jax
import numpy as np
import pytest

import posterity as po
from posterity.tests.fixtures.faulty_proxy import FAULTS, FaultyProxy
from posterity.tests.fixtures.smollm2_file import llama_server, smollm2_file

pytestmark = [pytest.mark.slow, pytest.mark.smollm2]

SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel, params.n_ctx = sys.argv[2], 0, 1, 512
params.model_alias, params.api_keys = ["smollm2"], ["a key"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # several wait for each other by spinning, which on a busy machine takes forever
params.endpoint_metrics, params.warmup, params.verbosity = True, False, 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
QUESTION = "<|im_start|>user\nName a color.<|im_end|>\n<|im_start|>assistant\n"
EXACT = {"cache_prompt": False}  # what was computed for another request rounds otherwise


@pytest.fixture(scope="module")
def address():
    command = [sys.executable, "-c", SERVE, str(llama_server()), str(smollm2_file())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        line = process.stdout.readline().strip()
        if not line:
            pytest.skip(f"llama.cpp's server does not start here (exit code {process.wait()})")
        yield line
        process.stdin.close()
        process.kill()


@pytest.fixture
def lm(address):
    lm = po.load(f"openai:{address}/v1", key="a key", model="smollm2")
    yield lm
    lm.close()


def totals(address):
    """The server's own counts: tokens of prompts, and written."""
    request = urllib.request.Request(f"{address}/metrics", headers={"Authorization": "Bearer a key"})
    text = urllib.request.urlopen(request).read().decode()
    count = {name: int(float(number)) for name, number in re.findall(r"^llamacpp:(\w+) ([\d.e+]+)$", text, re.M)}
    return np.array([count["prompt_tokens_total"] + count.get("prompt_tokens_cached_total", 0), count["tokens_predicted_total"]])


def test_a_stop_string_the_end_of_a_text_and_a_cut_are_told_apart(lm):
    stopped = lm.complete("One, two,", seed=0, max_tokens=20, stop=["zzz", "ree"], temperature=0.0)
    assert (stopped.text, stopped.finish, stopped.stop) == (" or th", "stop", "ree")
    assert lm.complete("One, two,", seed=0, max_tokens=2, stop="zzz", temperature=0.0).finish == "length"
    ended = lm.complete(QUESTION, seed=0, max_tokens=100, stop="zzz", temperature=0.0)
    assert (ended.finish, ended.stop) == ("eos", "")
    cut = lm.complete("One, two,", seed=0, max_tokens=50, stop=re.compile("n[ou]m"), temperature=0.0)
    assert (cut.text, cut.stop, cut.finish) == (" or three, and the ", "num", "stop")
    assert cut.tokens < 12


def test_log_probabilities_are_those_of_the_same_file_in_this_process(lm):
    """The server computes with 8-bit activations, so they agree to a tenth of a nat a token."""
    from posterity.models.lm import gguf_file

    found = lm.complete("The capital of France is", seed=1, max_tokens=6, stop="zzz")
    decoder, tokenizer = gguf_file.load(smollm2_file())
    prompt = tokenizer.encode("The capital of France is")
    tokens = np.array([prompt + tokenizer.encode(found.text)])
    assert (found.prompt_tokens, found.tokens) == (len(prompt), tokens.shape[1] - len(prompt))
    log_probs = jax.nn.log_softmax(decoder.logits(decoder(tokens)[0]))[0]
    expected = sum(float(log_probs[i, tokens[0, i + 1]]) for i in range(len(prompt) - 1, tokens.shape[1] - 1))
    assert found.log_prob == pytest.approx(expected, abs=0.1 * found.tokens)


def test_the_ledger_is_the_servers_own_count(lm, address):
    before = totals(address)
    po.importance(jax.random.key(0), po.remote.steps(lm, "Roses are", max_steps=3, max_step_tokens=5, stop=" "), n=4)
    assert lm.ledger.calls >= 4
    assert tuple(totals(address) - before) == (lm.ledger.prompt_tokens, lm.ledger.generated_tokens)


def test_smc_through_the_faulty_proxy_is_smc_without_faults(address, tmp_path):
    hurry = po.remote.Patience(seconds=60.0, retries=20, pause=0.01)

    def run(url, **options):
        far = po.load(f"openai:{url}", key="a key", patience=hurry, **options)
        program = po.remote.steps(far, "Once upon a time", stop=" ", max_steps=5, max_step_tokens=5, potential=no_e, options=EXACT)
        posterior, ledger = po.smc(jax.random.key(0), program, n=4), far.ledger
        far.close()
        return posterior.answers(), float(posterior.log_evidence), ledger

    def no_e(text, whole):
        return -float(text.count("e"))

    clean = run(f"{address}/v1")
    faults = tuple(fault for fault in FAULTS if fault not in ("silence", "slow drip"))
    with FaultyProxy(int(address.rpartition(":")[2]), share=0.5, faults=faults) as proxy:
        faulty = run(proxy.url, log=tmp_path / "log")
    again = run(f"{address}/v1", log=tmp_path / "log")
    assert proxy.made.keys() == set(faults)
    assert clean[:2] == faulty[:2] == again[:2]
    assert (again[2].calls, again[2].replayed) == (0, faulty[2].calls)
    assert (faulty[2].prompt_tokens, faulty[2].generated_tokens) == (clean[2].prompt_tokens, clean[2].generated_tokens)


def test_a_wrong_key_another_model_and_another_tokenizer_are_errors(address):
    with pytest.raises(PermissionError, match=r"refuses the key \(401 Unauthorized: Invalid API Key\); give the right one"):
        po.load(f"openai:{address}/v1", model="smollm2").complete("One", seed=0)
    with pytest.raises(ValueError, match="does not serve 'llama'; it serves 'smollm2'"):
        po.load(f"openai:{address}/v1", key="a key", model="llama")
    own = po.load(f"gguf:{smollm2_file()}").tokenizer
    po.load(f"openai:{address}/v1", key="a key", tokenizer=own).close()
    with pytest.raises(ValueError, match=r"has another tokenizer than the one given: .* tokens there, .* here"):
        po.load(f"openai:{address}/v1", key="a key", tokenizer=byte_tokenizer())


def byte_tokenizer():
    import tokenizers

    from posterity.models.lm.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(backend)


def test_the_extension_is_not_imported_here():
    assert importlib.util.find_spec("xllamacpp") is None or "xllamacpp" not in sys.modules
