"""Ways to damage a file, by its form: bytes, text, JSON, YAML, safetensors, gzip of any of them."""

import gzip
import json
import struct

NUMBERS = [-1, 0, 1, 0.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**18, 10**30, True, None]


def hostile_texts(canary):
    """Strings that some program somewhere runs, opens, fills in or chokes on."""
    return [
        f"pipe:touch {canary}; #", f"| touch {canary}", f"touch {canary} |", f"$(touch {canary})", f"`touch {canary}`",
        f"; touch {canary};", "file:///etc/passwd", "http://127.0.0.1:9/x", "/dev/zero", "/etc/passwd", "/",
        "../../../../../../etc/passwd", "..", ".", "-", "--help", "${oc.env:HOME}", "${", "${a.b}", "{a: [", "!!python/none",
        f"!!python/object/apply:os.system ['touch {canary}']", f"__import__('os').system('touch {canary}')", "\0", "\ud800",
        "e\u0301", "\ufeff", "\u3000", "\u00a0", "x" * 100_000, "", "nan", "-inf", "1e999", "9" * 400, "<unk>", "<blk>",
        "a\nb", "a\tb", "%s%n", "NULL", "[" * 5000,
    ]  # fmt: skip


def damage(rng, content, form, canary):
    """(how, bytes) of a damaged ``content``; ``form``: bytes, text, json, jsonl, yaml or safetensors, with ``.gz`` behind it
    where it is packed.  The bytes always differ."""
    while True:
        how, damaged = _damage(rng, content, form, canary)
        if damaged != content:
            return how, damaged


def _damage(rng, content, form, canary):
    if form.endswith(".gz"):
        if rng.random() < 0.5:
            return _bytes(rng, content)
        how, inner = _damage(rng, gzip.decompress(content), form[: -len(".gz")], canary)
        return how, gzip.compress(inner, 1, mtime=0)
    if form == "safetensors" and rng.random() < 0.5:
        return _safetensors(rng, content, canary)
    if form in ("json", "jsonl") and rng.random() < 0.6:
        return _json(rng, content, canary, form == "jsonl")
    if form in ("text", "yaml") and rng.random() < 0.7:
        return _text(rng, content, canary)
    return _bytes(rng, content)


def _bytes(rng, content):
    kind = rng.choice(
        ["flip", "flip", "byte", "cut", "cut", "gap", "twice", "insert", "zeros", "empty", "long", "swap"]
    )
    size, data = len(content), bytearray(content)
    if not size:
        return "insert", rng.randbytes(5)
    # Headers are short: half of the places lie in the first 200 bytes.
    place = rng.randrange(min(size, 200) if rng.random() < 0.5 else size)
    length = min(size - place, rng.choice([1, 2, 4, 30, 1000]))
    if kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[place] = rng.randrange(256)
    elif kind == "cut":
        place = rng.choice([place, size - 1, size // 2])
        return "cut", bytes(data[:place])
    elif kind == "gap":
        del data[place : place + length]
    elif kind == "twice":
        data[place:place] = data[place : place + length]
    elif kind == "insert":
        data[place:place] = rng.randbytes(length)
    elif kind == "zeros":
        data[place : place + length] = bytes(length)
    elif kind == "empty":
        return kind, b"" if rng.random() < 0.1 else bytes(data[: rng.randrange(min(size, 40))])
    elif kind == "long":
        data += rng.choice([rng.randbytes(50), bytes(50), bytes(data[:50])])
    elif kind == "swap":
        other = rng.randrange(size)
        data[place], data[other] = data[other], data[place]
    return kind, bytes(data)


def _text(rng, content, canary):
    text = content.decode("utf-8", "surrogateescape")
    lines = text.split("\n")
    place = rng.randrange(len(lines))
    kind = rng.choice(
        ["drop line", "double line", "move line", "word", "word", "word", "add word", "add line", "blank"]
    )
    new = rng.choice([str(rng.choice(NUMBERS)), rng.choice(hostile_texts(canary))])
    if kind == "drop line":
        del lines[place]
    elif kind == "double line":
        lines.insert(rng.randrange(len(lines)), lines[place])
    elif kind == "move line":
        lines.insert(rng.randrange(len(lines)), lines.pop(place))
    elif kind == "add line":
        lines.insert(place, new)
    elif kind == "blank":
        lines[place] = rng.choice([" ", "\t", "\r", "\u3000", "\u00a0", "\u2028"]).join(lines[place].split(" "))
    else:
        words = lines[place].split(" ")
        at = rng.randrange(len(words))
        words[at : at + (kind == "word")] = [new]
        lines[place] = " ".join(words)
    return kind, "\n".join(lines).encode("utf-8", "surrogatepass")


def _json(rng, content, canary, is_lines):
    """One value of the tree is another one, is gone, or is there twice."""
    try:
        values = (
            [json.loads(line) for line in content.splitlines() if line.strip()] if is_lines else json.loads(content)
        )
    except ValueError:
        return _bytes(rng, content)
    places = list(_places(values))
    if not places:
        return _bytes(rng, content)
    holder, key = rng.choice(places)
    kind = rng.choice(["number", "number", "text", "gone", "list", "deep", "other", "twice"])
    if kind == "number":
        holder[key] = rng.choice(NUMBERS)
    elif kind == "text":
        holder[key] = rng.choice(hostile_texts(canary))
    elif kind == "gone":
        del holder[key]
    elif kind == "list":
        holder[key] = rng.choice([[], {}, [holder[key]], {"a": holder[key]}])
    elif kind == "deep":
        holder[key] = "@deep@"
    elif kind == "other":
        other, name = rng.choice(places)
        holder[key] = other[name]
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
    else:
        holder[f"{key}2"] = holder[key]
    try:
        text = "".join(json.dumps(value) + "\n" for value in values) if is_lines else json.dumps(values, indent=1)
    except (ValueError, RecursionError):  # a tree that holds itself
        return _bytes(rng, content)
    return kind, text.replace('"@deep@"', "[" * 3000 + "]" * 3000).encode()


def _places(values):
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield values, key
        yield from _places(value)


def _safetensors(rng, content, canary):
    """Its header, a JSON object behind its length."""
    size = struct.unpack("<Q", content[:8])[0]
    if rng.random() < 0.15:
        claimed = rng.choice([0, 1, size - 1, size + 8, 2 << 30, 1 << 40, 1 << 63, (1 << 64) - 1])
        return "length of the header", struct.pack("<Q", claimed) + content[8:]
    how, header = _json(rng, content[8 : 8 + size], canary, False)
    return f"header: {how}", struct.pack("<Q", len(header)) + header + content[8 + size :]
