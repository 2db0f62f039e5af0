"""`python -m steadfast_trainer.data.prepare`: documents -> tokenizer -> tokens -> MDS shards in a bucket.

Run as a child by `steadfast data prepare`. The same sources and options give the same bytes, so preparing twice is
harmless. The shards are written by mosaicml-streaming's own writer; uploading is ours (`checkpoint.store`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import sys
import tempfile
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tokenizers
from numpy.typing import NDArray

from steadfast_contract.exits import ExitCode
from steadfast_trainer.checkpoint.store import ObjectMissing, ObjectStore, StoreError
from steadfast_trainer.data.dataset import (
    COLUMN,
    INDEX,
    MANIFEST,
    TOKENIZER,
    FormatError,
    Source,
    StreamManifest,
    sha256_of,
)
from steadfast_trainer.data.sources import Corpus, SourceError, find_corpus, read_documents

END_OF_TEXT = "<|endoftext|>"
_ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>")
SHARD_BYTES = 2 << 20
_TOKENIZER_TRAINING_BYTES = 64 << 20
_ENCODED_AT_ONCE = 1 << 20
_UPLOAD_THREADS = 8
_WRITER_PACKAGES = ("streaming", "streaming.base", "streaming.base.format", "streaming.base.format.mds")


class TokenizerError(Exception):
    """The tokenizer cannot be read or used."""


class StreamExistsError(Exception):
    """The destination already holds something else."""


_EXIT_CODES: dict[type[Exception], ExitCode] = {
    TokenizerError: ExitCode.CONFIG,
    SourceError: ExitCode.DATA,
    StreamExistsError: ExitCode.DATA,
    StoreError: ExitCode.STORAGE,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to prepare, from what, and where to."""

    sources: tuple[str, ...]
    out: str
    tokenizer: str
    sequence_length: int
    max_tokens: int | None = None
    overwrite: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare one stream; returns the exit code and prints why on stderr."""
    options = _parse(arguments)
    try:
        print(prepare(options, env=os.environ))
    except tuple(_EXIT_CODES) as error:
        print(f"error: {error}", file=sys.stderr)
        return next(code for kind, code in _EXIT_CODES.items() if isinstance(error, kind))
    return ExitCode.DONE


def prepare(options: Options, *, env: Mapping[str, str]) -> str:
    """Prepare one stream and return the summary line.

    Raises:
        SourceError: nothing to read, or too little for one sample.
        TokenizerError: the tokenizer cannot be read or used.
        StreamExistsError: the destination holds another stream, and may not be overwritten.
        StoreError: the bucket is missing, refuses us, or cannot be reached.
    """
    started = time.monotonic()
    store = ObjectStore(options.out, env=env)
    found = _find_stream(store)  # first: wrong credentials need not wait for the tokenizer
    corpora = [find_corpus(source) for source in options.sources]
    _say(f"found {sum(len(corpus.paths) for corpus in corpora)} files")
    tokenizer_json = _tokenizer_json(options.tokenizer, corpora=corpora, env=env)
    with tempfile.TemporaryDirectory(prefix="steadfast-prepare-") as folder:
        manifest = _write_shards(Path(folder), corpora=corpora, tokenizer_json=tokenizer_json, options=options)
        shards = sorted(path.name for path in Path(folder).glob("shard.*"))
        kept = _keep_existing(found, manifest, options=options)
        if not kept:
            _upload(Path(folder), store=store, shards=shards, manifest=manifest, tokenizer_json=tokenizer_json)
    documents = sum(source.documents for source in manifest.sources)
    return (
        f"{options.out} {'already holds this stream' if kept else 'prepared'}: {documents} documents, "
        f"{manifest.tokens} tokens, {manifest.samples} samples, {len(shards)} shards, "
        f"vocabulary {manifest.vocabulary_size}, {time.monotonic() - started:.1f} s"
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the destination held before."""

    manifest: bytes | None
    index: bytes | None


def _find_stream(store: ObjectStore) -> _Found:
    return _Found(manifest=_get(store, MANIFEST), index=_get(store, INDEX))


def _get(store: ObjectStore, key: str) -> bytes | None:
    try:
        return bytes(store.get(key))
    except ObjectMissing:
        return None


def _keep_existing(found: _Found, manifest: StreamManifest, *, options: Options) -> bool:
    """Whether the destination already holds this stream, whatever its sources were called."""
    if found.manifest is not None:
        try:
            existing = StreamManifest.from_json(found.manifest)
        except FormatError as error:
            what = f"an unreadable {MANIFEST} ({error})"
        else:
            if replace(existing, sources=manifest.sources) == manifest:
                return True
            what = f"another stream ({existing.samples} samples of {existing.sequence_length} tokens)"
    elif found.index is not None and sha256_of(found.index) != manifest.index_sha256:
        what = "MDS shards written by something else, or by an interrupted `prepare`"
    else:
        return False
    if options.overwrite:
        return False
    raise StreamExistsError(f"{options.out} holds {what}: name another --out, or pass --overwrite")


def _tokenizer_json(spec: str, *, corpora: Sequence[Corpus], env: Mapping[str, str]) -> bytes:
    """`tokenizer.json`, trained or read. A read one is kept byte for byte: its digest is its identity."""
    if match := re.fullmatch(r"train:(\d+)", spec):
        return _train_tokenizer(corpora, vocabulary_size=int(match[1]))
    try:
        if spec.startswith("s3://"):
            parent, _, name = spec.rpartition("/")
            return bytes(ObjectStore(parent, env=env).get(name))
        return Path(spec).read_bytes()
    except (OSError, ValueError, ObjectMissing) as error:
        raise TokenizerError(f"no tokenizer {spec!r} (train:SIZE, a path or s3://...): {error}") from error


def _train_tokenizer(corpora: Sequence[Corpus], *, vocabulary_size: int) -> bytes:
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if vocabulary_size <= len(alphabet):
        raise TokenizerError(f"train:{vocabulary_size} is too small: bytes alone take {len(alphabet) + 1}")
    _say(f"training a byte-level BPE tokenizer of {vocabulary_size}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=[END_OF_TEXT], initial_alphabet=sorted(alphabet), show_progress=False
    )
    size = sum(path.stat().st_size for corpus in corpora for path in corpus.paths)
    every = 1 + size // _TOKENIZER_TRAINING_BYTES
    documents = (text for corpus in corpora for text in read_documents(corpus, every=every))
    tokenizer.train_from_iterator(documents, trainer=trainer)
    return str(tokenizer.to_str()).encode()


class _Encoder:
    """Documents -> tokens, each document closed by the end-of-text token; counts what it read."""

    def __init__(self, tokenizer_json: bytes) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json.decode())
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"not a tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A document that quotes the end-of-text token must not end there.
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab()
        self.vocabulary_size = max(vocabulary.values(), default=-1) + 1
        end = next((vocabulary[token] for token in _ENDS_OF_TEXT if token in vocabulary), None)
        if end is None:
            raise TokenizerError(f"the tokenizer has no end-of-text token (one of {', '.join(_ENDS_OF_TEXT)})")
        self._end = end
        self.sources: list[Source] = []

    def encode(self, corpora: Iterable[Corpus]) -> Iterator[NDArray[np.int64]]:
        """Tokens in document order, in pieces of many documents."""
        for corpus in corpora:
            self.sources.append(Source(name=corpus.name, documents=0, bytes=0))
            for texts in _batched(read_documents(corpus)):
                size = sum(len(text.encode()) for text in texts)
                done = self.sources[-1]
                self.sources[-1] = replace(done, documents=done.documents + len(texts), bytes=done.bytes + size)
                encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                yield np.concatenate([np.array([*text.ids, self._end], dtype=np.int64) for text in encoded])


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    room = _ENCODED_AT_ONCE
    for text in texts:
        batch.append(text)
        room -= len(text)
        if room <= 0:
            yield batch
            batch, room = [], _ENCODED_AT_ONCE
    if batch:
        yield batch


def _cut_samples(pieces: Iterable[NDArray[np.int64]], *, length: int) -> Iterator[NDArray[np.int64]]:
    """Samples of length + 1 tokens; each starts with the last token of the one before. The rest is dropped."""
    rest = np.empty(0, dtype=np.int64)
    for piece in pieces:
        rest = np.concatenate([rest, piece])
        count = max(0, (len(rest) - 1) // length)
        for start in range(0, count * length, length):
            yield rest[start : start + length + 1]
        rest = rest[count * length :]


def _write_shards(
    folder: Path, *, corpora: Sequence[Corpus], tokenizer_json: bytes, options: Options
) -> StreamManifest:
    encoder = _Encoder(tokenizer_json)
    manifest = StreamManifest(
        tokenizer_sha256=sha256_of(tokenizer_json),
        vocabulary_size=encoder.vocabulary_size,
        sequence_length=options.sequence_length,
        samples=0,
        tokens=0,
        index_sha256="",
        sources=(),
    )
    limit = None if options.max_tokens is None else options.max_tokens // options.sequence_length
    samples = 0
    _say("writing shards")
    writer = _import_writer()(
        columns={COLUMN: manifest.encoding}, out=str(folder), hashes=["sha256"], size_limit=SHARD_BYTES
    )
    with writer:
        for sample in _cut_samples(encoder.encode(corpora), length=options.sequence_length):
            if samples == limit:
                break
            writer.write({COLUMN: sample.astype(manifest.token_type)})
            samples += 1
    if not samples:
        raise SourceError(
            f"{', '.join(options.sources)}: no readable text for even one sequence of {options.sequence_length} tokens"
        )
    return replace(
        manifest,
        samples=samples,
        tokens=samples * options.sequence_length,
        index_sha256=sha256_of((folder / INDEX).read_bytes()),
        sources=tuple(encoder.sources),
    )


def _import_writer() -> Any:
    """MDSWriter alone: `import streaming` also loads transformers and every reader, 9 s instead of 3.

    Its packages are stood in for by bare ones while the module loads; they are forgotten afterwards, so that an
    `import streaming` elsewhere in the process gets the real thing.
    """
    spec = importlib.util.find_spec("streaming")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("mosaicml-streaming is not installed")
    root = Path(spec.submodule_search_locations[0])
    bare = [name for name in _WRITER_PACKAGES if name not in sys.modules]
    try:
        for name in bare:
            package = types.ModuleType(name)
            package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
            sys.modules[name] = package
        return importlib.import_module(f"{_WRITER_PACKAGES[-1]}.writer").MDSWriter
    finally:
        for name in bare:
            del sys.modules[name]


def _upload(
    folder: Path, *, store: ObjectStore, shards: Sequence[str], manifest: StreamManifest, tokenizer_json: bytes
) -> None:
    """Shards in parallel, then what names them: a reader that finds `steadfast.json` finds everything."""
    _say(f"uploading {len(shards)} shards")
    with ThreadPoolExecutor(_UPLOAD_THREADS) as pool:
        for _ in pool.map(lambda name: store.put(name, (folder / name).read_bytes()), shards):
            pass
    store.put(TOKENIZER, tokenizer_json)
    store.put(INDEX, (folder / INDEX).read_bytes())
    store.put(MANIFEST, manifest.to_json())


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Wrong arguments are a wrong configuration: exit 64, not argparse's 2."""
        self.print_usage(sys.stderr)
        self.exit(ExitCode.CONFIG, f"error: {message}\n")


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = _Parser(prog="python -m steadfast_trainer.data.prepare", description="Documents to MDS shards in a bucket")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="file, folder, python-stdlib or man-pages")
    parser.add_argument("--out", required=True, type=_bucket_url, help="s3://bucket/prefix")
    parser.add_argument("--tokenizer", required=True, help="train:SIZE, a tokenizer.json, or s3://.../tokenizer.json")
    parser.add_argument("--sequence-length", required=True, type=_positive)
    parser.add_argument("--max-tokens", type=_positive)
    parser.add_argument("--overwrite", action="store_true", help="replace another stream at --out")
    values = vars(parser.parse_args(arguments))
    return Options(**values | {"sources": tuple(values["sources"])})


def _bucket_url(text: str) -> str:
    if not re.fullmatch(r"s3://[^/]+/.*[^/]/?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not s3://bucket/prefix")
    return text.rstrip("/")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
