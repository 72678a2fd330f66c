"""Files that `trunkline quantize` writes, as the reference reader of the format (package gguf) sees them."""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import unittest

import gguf
import numpy as np
from gguf.quants import dequantize

root = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root / "scripts"))
from serving import binary  # noqa: E402

REFERENCE = root / "tests" / "fixtures" / "reference"
# Written by the package itself from the same checkpoints (scripts/make_reference_fixtures.py).
CHECKPOINTS = ("qwen3", "qwen2", "llama3")
Types = gguf.GGMLQuantizationType


class Written(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def quantize(self, model, kind):
        output = self.folder / f"{pathlib.Path(model).name}-{kind}.gguf"
        subprocess.run([binary(), "quantize", str(model), str(output), "--type", kind], check=True, capture_output=True)
        return gguf.GGUFReader(output)

    def test_tensors_are_those_the_package_writes(self):
        for name in CHECKPOINTS:
            for kind in ("f16", "q8_0"):
                with self.subTest(model=name, type=kind):
                    expected = {t.name: t for t in gguf.GGUFReader(REFERENCE / name / f"model-{kind}.gguf").tensors}
                    found = {t.name: t for t in self.quantize(REFERENCE / name, kind).tensors}
                    self.assertEqual(found.keys(), expected.keys())
                    for tensor in expected:
                        f, e = found[tensor], expected[tensor]
                        self.assertEqual((f.tensor_type, list(f.shape)), (e.tensor_type, list(e.shape)), tensor)
                        if tensor == "rope_freqs.weight":
                            np.testing.assert_allclose(f.data, e.data, rtol=1e-6)
                        else:
                            np.testing.assert_array_equal(f.data, e.data, tensor)

    def test_metadata_is_what_the_package_writes(self):
        for name in CHECKPOINTS:
            with self.subTest(model=name):
                expected = gguf.GGUFReader(REFERENCE / name / "model-q8_0.gguf").fields
                found = self.quantize(REFERENCE / name, "q8_0").fields
                for key, field in expected.items():
                    # Counts differ because more is written; padding is not named in these checkpoints' folders.
                    if key.startswith("GGUF.") or key.startswith("general.") or key.endswith("padding_token_id"):
                        continue
                    if key == "tokenizer.ggml.bos_token_id" and key not in found:
                        self.assertNotEqual(name, "llama3")  # the others' folders name none
                        continue
                    self.assertIn(key, found)
                    self.assertEqual(found[key].types, field.types, key)
                    self.assertEqual(found[key].contents(), field.contents(), key)
                self.assertEqual(found["general.architecture"].contents(), expected["general.architecture"].contents())
                self.assertEqual(found["general.file_type"].contents(), gguf.LlamaFileType.MOSTLY_Q8_0)
                self.assertEqual(found["general.quantization_version"].contents(), gguf.GGML_QUANT_VERSION)

    def test_every_type_dequantizes_to_the_weights(self):
        bounds = dict(bf16=0, f16=0, q8_0=0.005, q6_k=0.03, q5_k_m=0.06, q4_k_m=0.13, q4_k_s=0.13, q4_0=0.13)
        exact = {t.name: np.asarray(t.data, np.float32) for t in self.quantize("demo", "f32").tensors}
        for kind, bound in bounds.items():
            for tensor in self.quantize("demo", kind).tensors:
                values = dequantize(tensor.data, tensor.tensor_type).reshape(exact[tensor.name].shape)
                error = np.abs(values - exact[tensor.name]).max() / np.abs(exact[tensor.name]).max()
                self.assertLessEqual(error, max(bound, 1e-7), f"{kind} {tensor.name} {tensor.tensor_type.name}")

    def test_the_mix_of_k_quants(self):
        reader = self.quantize("demo", "q4_k_m")
        kinds = {t.name: t.tensor_type for t in reader.tensors}
        self.assertEqual(kinds["token_embd.weight"], Types.Q6_K)
        for part in ("attn_v", "ffn_down"):
            found = [kinds[f"blk.{layer}.{part}.weight"].name for layer in range(6)]
            self.assertEqual(found, ["Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K"], part)
        self.assertEqual(kinds["blk.0.attn_norm.weight"], Types.F32)
        self.assertEqual(reader.fields["general.file_type"].contents(), gguf.LlamaFileType.MOSTLY_Q4_K_M)
        tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
        self.assertEqual(tokens, json.loads((root / "models/demo/config.json").read_text())["vocab_size"])

    def test_wrong_input_is_refused(self):
        def run(*arguments):
            done = subprocess.run([binary(), "quantize", *map(str, arguments)], capture_output=True, text=True)
            return done.returncode, done.stderr

        out = self.folder / "out.gguf"
        code, error = run("demo", out, "--type", "q3_k_m")
        self.assertEqual(code, 2)
        self.assertIn("q4_k_m", error)
        out.write_bytes(b"precious")
        code, error = run("demo", out)
        self.assertEqual(code, 1)
        self.assertIn("--force", error)
        self.assertEqual(out.read_bytes(), b"precious")
        code, error = run(REFERENCE / "qwen3" / "model-q8_0.gguf", self.folder / "again.gguf")
        self.assertEqual(code, 1)
        self.assertIn("quantized already", error)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["out.gguf"])

    def test_a_write_that_fails_leaves_nothing(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

        # Python ignores the signal that would end the process; so does, then, the program it starts.
        done = subprocess.run(
            [binary(), "quantize", "demo", str(self.folder / "out.gguf")],
            capture_output=True, text=True, preexec_fn=limit, restore_signals=False,
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn("cannot write", done.stderr)
        self.assertIn("out.gguf", done.stderr)
        self.assertEqual(list(self.folder.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
