"""Files as strangers have them: name, content, and what `load_examples` must make of it.

The examples `(text, label)` in order, or words of the refusal. 0 tracebacks, 0 wrong rows.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import zipfile

try:
    import zstandard
except ImportError:
    zstandard = None

TWO = [("good", "p"), ("bad", "n")]
PLAIN = "text,label\ngood,p\nbad,n\n"
TSV = "text\tlabel\ngood\tp\nbad\tn\n"
SEMI = "text;label\ngood;p\nbad;n\n"
JSONL = '{"text": "good", "label": "p"}\n{"text": "bad", "label": "n"}\n'
JSON = '[{"text": "good", "label": "p"}, {"text": "bad", "label": "n"}]'


def zipped(name: str, content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def table(classes, columns):
    """A table of Arrow's, with the names of the classes of `label` as `datasets` notes them."""
    import pyarrow

    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": classes, "_type": "ClassLabel"}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.table(columns).replace_schema_metadata(noted if classes else None)


def parquet(classes=None, **columns) -> bytes:
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table(classes, columns), buffer)
    return buffer.getvalue()


def arrow(classes=None, stream=False, **columns) -> bytes:
    import pyarrow

    buffer, content = io.BytesIO(), table(classes, columns)
    with (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(buffer, content.schema) as writer:
        writer.write_table(content)
    return buffer.getvalue()


def parquet_twice() -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([["a"], ["b"]], names=["text", "text"]), buffer)
    return buffer.getvalue()


def labels(*written: str, suffix: str) -> bytes:
    """A table of the texts a, b, ... whose labels are written as given."""
    if suffix == ".jsonl":
        return "".join(f'{{"text": "{chr(97 + i)}", "label": {label}}}\n' for i, label in enumerate(written)).encode()
    mark = "," if suffix == ".csv" else "\t"
    return "".join(
        [f"text{mark}label\n", *(f"{chr(97 + i)}{mark}{label}\n" for i, label in enumerate(written))]
    ).encode()


def zst(content: str, parts: int = 1) -> bytes:
    raw = content.encode()
    size = -(-len(raw) // parts)
    frames = [zstandard.ZstdCompressor().compress(raw[i : i + size]) for i in range(0, len(raw), size)]
    return b"".join(frames)


SKIPPED = b"\x50\x2a\x4d\x18\x02\0\0\0ab"  # a frame that holds no content
PACKED_BY_ZSTD, BROKEN_BY_ZSTD = {}, {}
if zstandard is not None:
    PACKED_BY_ZSTD = {
        "plain.csv.zst": (zst(PLAIN), TWO),
        "plain.jsonl.zst": (zst(JSONL), TWO),
        "frames.csv.zst": (SKIPPED + zst(PLAIN, parts=3) + SKIPPED, TWO),
        "zstd_called.csv": (zst(PLAIN), TWO),
        "not_packed.csv.zst": (PLAIN, TWO),
    }
    BROKEN_BY_ZSTD = {
        "cut_off.csv.zst": (zst(PLAIN)[:-3], "is packed (.zst) and damaged"),
        "nothing_but_magic.csv.zst": (b"\x28\xb5\x2f\xfd", "it ends in the middle of a frame"),
        "noise.csv.zst": (zst(PLAIN) + b"noise", "is packed (.zst) and damaged"),
        "bomb.csv.zst": (zst("a" * (70 * 2**20)), "unpacks to more than 100 times its size"),
    }

READ = {  # name: (content, examples)
    # --- what everybody writes ---
    "plain.csv": (PLAIN, TWO),
    "plain.tsv": (TSV, TWO),
    "plain.jsonl": (JSONL, TWO),
    "plain.ndjson": (JSONL, TWO),
    "plain.json": (JSON, TWO),
    "CAPITALS.CSV": (PLAIN, TWO),
    "no_end.csv": (PLAIN.rstrip(), TWO),
    "no_end.tsv": (TSV.rstrip(), TWO),
    "no_end.jsonl": (JSONL.rstrip(), TWO),
    "blank_between.csv": ("\ntext,label\n\ngood,p\n\n\nbad,n\n\n", TWO),
    "blank_between.tsv": ("\ntext\tlabel\n\ngood\tp\n\n\nbad\tn\n\n", TWO),
    "blank_between.jsonl": (JSONL.replace("\n", "\n\n"), TWO),
    "spaces_in_header.csv": ("text , label\ngood,p\nbad,n\n", TWO),
    "spaces_around_labels.csv": ("text,label\ngood, p\nbad,n \n", TWO),
    "capital_header.csv": ("Text,Label\ngood,p\nbad,n\n", TWO),
    "index_of_pandas.csv": (",text,label\n0,good,p\n1,bad,n\n", TWO),
    "swapped.csv": ("label,text\np,good\nn,bad\n", TWO),
    "usual_names.csv": ("sentence,category\ngood,p\nbad,n\n", TWO),
    "json_lines.json": (JSONL, TWO),
    "pretty.json": (json.dumps(json.loads(JSON), indent=2), TWO),
    "pretty.jsonl": (json.dumps(json.loads(JSON), indent=2), TWO),
    "key_order.jsonl": ('{"label": "p", "text": "good"}\n{"text": "bad", "more": [1], "label": "n"}\n', TWO),
    "escapes.jsonl": ('{"text": "a\\nb\\t\\u00e9\\ud83d\\ude00", "label": "p"}\n', [("a\nb\té😀", "p")]),
    "nested_beside.jsonl": ('{"text": "good", "label": "p", "meta": {"a": [1, {"b": 2}]}}\n', [("good", "p")]),
    "plain.parquet": (parquet(text=["good", "bad"], label=["p", "n"]), TWO),
    "plain.arrow": (arrow(text=["good", "bad"], label=["p", "n"]), TWO),
    "plain.feather": (arrow(text=["good", "bad"], label=["p", "n"]), TWO),
    "stream.arrow": (arrow(stream=True, text=["good", "bad"], label=["p", "n"]), TWO),
    "classes.arrow": (arrow(classes=["n", "p"], text=["good", "bad"], label=[1, 0]), TWO),
    "classes.parquet": (parquet(classes=["n", "p"], text=["good", "bad"], label=[1, 0]), TWO),
    "no_classes.parquet": (parquet(classes=["n"], text=["good", "bad"], label=[1, 0]), [("good", "1"), ("bad", "n")]),
    "arrow_called.csv": (arrow(text=["good", "bad"], label=["p", "n"]), TWO),
    "parquet_called.csv": (parquet(text=["good", "bad"], label=["p", "n"]), TWO),
    # --- ends of lines: \n, \r\n and \r, and nothing else ---
    "windows.csv": (PLAIN.replace("\n", "\r\n"), TWO),
    "windows.tsv": (TSV.replace("\n", "\r\n"), TWO),
    "windows.jsonl": (JSONL.replace("\n", "\r\n"), TWO),
    "old_mac.csv": (PLAIN.replace("\n", "\r"), TWO),
    "old_mac.tsv": (TSV.replace("\n", "\r"), TWO),
    "old_mac.jsonl": (JSONL.replace("\n", "\r"), TWO),
    **{
        f"inside_{ord(char):04x}{suffix}": (content.replace("good", f"go{char}od"), [(f"go{char}od", "p"), TWO[1]])
        for char in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
        for suffix, content in {".csv": PLAIN, ".tsv": TSV}.items()
    },
    "inside_2028.jsonl": (JSONL.replace("good", "go\u2028od"), [("go\u2028od", "p"), TWO[1]]),
    "inside_0085.json": (JSON.replace("good", "go\x85od"), [("go\x85od", "p"), TWO[1]]),
    "newline_in_quotes.csv": ('text,label\n"a\nb",p\n"c\r\nd",n\n', [("a\nb", "p"), ("c\r\nd", "n")]),
    # --- quotes in CSV ---
    "quoted.csv": ('"text","label"\n"good","p"\n"bad","n"\n', TWO),
    "comma_in_quotes.csv": ('text,label\n"a, b",p\n', [("a, b", "p")]),
    "doubled.csv": ('text,label\n"He said ""hi""",p\n', [('He said "hi"', "p")]),
    "only_quotes.csv": ('text,label\n"""",p\n', [('"', "p")]),
    "quote_in_the_middle.csv": (
        'text,label\nHe said "hi",p\na 6" pipe,n\n',
        [('He said "hi"', "p"), ('a 6" pipe', "n")],
    ),
    "apostrophes.csv": ("text,label\n'good',p\n'tis bad,n\n", [("'good'", "p"), ("'tis bad", "n")]),
    "long_field.csv": (f"text,label\n{'x ' * 150_000},p\n", [("x " * 150_000, "p")]),
    "space_before_quotes.csv": ('text, label\n"a, b", "p"\n"c", "n"\n', [("a, b", "p"), ("c", "n")]),
    "space_in_quotes.csv": ('text,label\n"so, ""he"" said",p\n "a",n\n', [('so, "he" said', "p"), ("a", "n")]),
    "space_before_text.csv": ('id,text,label\n1, "a" b,p\n', [(' "a" b', "p")]),
    "row_like_the_header.csv": ("text,label\ntext,p\nx,label\n", [("text", "p"), ("x", "label")]),
    # --- TSV: quoted if it is whole that way and loses no line, else as it stands ---
    "glue.tsv": (
        'text\tlabel\ngood\tp\n"I liked it,\tp\nit bored me"\tn\nbad\tn\n',
        [("good", "p"), ('"I liked it,', "p"), ('it bored me"', "n"), ("bad", "n")],
    ),
    "one_quote.tsv": ('text\tlabel\n"good\tp\nbad\tn\n', [('"good', "p"), ("bad", "n")]),
    "quote_in_the_middle.tsv": ('text\tlabel\nHe said "hi"\tp\n"so"\tn\n', [('He said "hi"', "p"), ('"so"', "n")]),
    "quote_and_more.tsv": ('text\tlabel\n"It is good," he said\tp\nbad\tn\n', [('"It is good," he said', "p"), TWO[1]]),
    "quotes_at_both_ends.tsv": ('text\tlabel\n"a" and "b"\tp\nbad\tn\n', [('"a" and "b"', "p"), ("bad", "n")]),
    "three_quotes.tsv": ('text\tlabel\n"""\tp\nbad\tn\n', [('"""', "p"), ("bad", "n")]),
    "quoted.tsv": ('text\tlabel\n"He said ""hi"""\tp\n"a, b"\tn\n', [('He said "hi"', "p"), ("a, b", "n")]),
    "sentence_in_quotes.tsv": ('text\tlabel\n"so"\tp\nbad\tn\n', [('"so"', "p"), ("bad", "n")]),
    "texts_in_quotes.tsv": ('text\tlabel\n"good"\tp\n"bad"\tn\n', TWO),
    "excel_commas.tsv": ('text\tlabel\n"a, b"\tp\nbad\tn\n', [("a, b", "p"), ("bad", "n")]),
    "some_commas.tsv": ('text\tlabel\n"a, b"\tp\nc, d\tn\n', [('"a, b"', "p"), ("c, d", "n")]),
    "all_quoted.tsv": ('"text"\t"label"\n"good"\t"p"\n"bad"\t"n"\n', TWO),
    "tab_in_quotes.tsv": ('text\tlabel\n"a\tb"\tp\nbad\tn\n', [("a\tb", "p"), ("bad", "n")]),
    "newline_in_quotes.tsv": ('text\tlabel\n"a\nb"\tp\nbad\tn\n', [("a\nb", "p"), ("bad", "n")]),
    "backslashes.tsv": ('text\tlabel\na \\"b\\" c\tp\nbad\tn\n', [('a \\"b\\" c', "p"), ("bad", "n")]),
    "quote_in_label.tsv": ('text\tlabel\ngood\t"p\nbad\tn"\n', [("good", '"p'), ("bad", 'n"')]),
    "glue_windows.tsv": ('text\tlabel\r\n"good\tp\r\nbad"\tn\r\n', [('"good', "p"), ('bad"', "n")]),
    "glue_called.csv": ('text\tlabel\n"good\tp\nbad"\tn\n', [('"good', "p"), ('bad"', "n")]),
    # --- other delimiters ---
    "semicolons.csv": (SEMI, TWO),
    "semicolons.tsv": (SEMI, TWO),
    "semicolons_and_commas.csv": ("text;label\na, b;p\nc, d, e;n\n", [("a, b", "p"), ("c, d, e", "n")]),
    "semicolons_quoted.csv": ('text;label\n"a; b";p\n"c\nd";n\n', [("a; b", "p"), ("c\nd", "n")]),
    "semicolons_header_comma.csv": ('"text";"a, b";label\ngood;1;p\nbad;2;n\n', TWO),
    "excel_says.csv": ("sep=;\r\ntext;label\r\ngood;p\r\nbad;n\r\n", TWO),
    "excel_says_comma.csv": ("sep=,\n" + PLAIN, TWO),
    "tabs.csv": (TSV, TWO),
    "commas.tsv": (PLAIN, TWO),
    "pipes.csv": (PLAIN.replace(",", "|"), TWO),
    # --- encodings ---
    "bom.csv": (codecs.BOM_UTF8 + PLAIN.encode(), TWO),
    "bom.tsv": (codecs.BOM_UTF8 + TSV.encode(), TWO),
    "bom.jsonl": (codecs.BOM_UTF8 + JSONL.encode(), TWO),
    "bom_between.csv": ("\ufeff" + PLAIN + "\ufeffso,n\n", [*TWO, ("so", "n")]),
    "bom_between.jsonl": ("\ufeff" + JSONL + "\ufeff" + JSONL, TWO * 2),
    "bom_inside.csv": (PLAIN.replace("good", "go\ufeffod"), [("go\ufeffod", "p"), TWO[1]]),
    "bom.json": (codecs.BOM_UTF8 + JSON.encode(), TWO),
    **{
        f"{encoding}{suffix}": (content.replace("good", "gööd").encode(encoding), [("gööd", "p"), TWO[1]])
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
        for suffix, content in {".csv": PLAIN, ".tsv": TSV, ".jsonl": JSONL}.items()
    },
    "utf-16-marked-be.csv": (codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"), TWO),
    "utf-16.json": (JSON.encode("utf-16"), TWO),
    "utf-16_semicolons.csv": (SEMI.replace("\n", "\r\n").encode("utf-16"), TWO),
    "utf-16_excel.csv": (TSV.replace("\n", "\r\n").encode("utf-16"), TWO),  # Excel's "Unicode text"
    "utf-16_no_mark_greek.csv": (
        "text,label\nκαλό,θ\n".encode("utf-16-le"),
        [("καλό", "θ")],
    ),
    # --- packed ---
    "plain.csv.gz": (gzip.compress(PLAIN.encode()), TWO),
    "plain.tsv.gz": (gzip.compress(TSV.encode()), TWO),
    "plain.jsonl.gz": (gzip.compress(JSONL.encode()), TWO),
    "plain.json.gz": (gzip.compress(JSON.encode()), TWO),
    "plain.parquet.gz": (gzip.compress(parquet(text=["good", "bad"], label=["p", "n"])), TWO),
    "two_members.csv.gz": (gzip.compress(b"text,label\ngood,p\n") + gzip.compress(b"bad,n\n"), TWO),
    **PACKED_BY_ZSTD,
    "plain.csv.bz2": (bz2.compress(PLAIN.encode()), TWO),
    "plain.jsonl.xz": (lzma.compress(JSONL.encode()), TWO),
    "utf-16.csv.gz": (gzip.compress(PLAIN.encode("utf-16")), TWO),
    "packed_without_saying.csv": (gzip.compress(PLAIN.encode()), TWO),
    "not_packed.csv.gz": (PLAIN, TWO),
    "CAPITALS.CSV.GZ": (gzip.compress(PLAIN.encode()), TWO),
    # --- labels: one value, one text ---
    "booleans_of_pandas.csv": (labels("True", "False", suffix=".csv"), [("a", "true"), ("b", "false")]),
    "booleans_of_r.csv": (labels("TRUE", "FALSE", suffix=".csv"), [("a", "true"), ("b", "false")]),
    "booleans.jsonl": (labels("true", "false", suffix=".jsonl"), [("a", "true"), ("b", "false")]),
    "booleans_as_text.jsonl": (labels('"True"', '"False"', suffix=".jsonl"), [("a", "true"), ("b", "false")]),
    "booleans.parquet": (parquet(text=["a", "b"], label=[True, False]), [("a", "true"), ("b", "false")]),
    "whole_floats.csv": (labels("1.0", "0.0", "-0.0", suffix=".csv"), [("a", "1"), ("b", "0"), ("c", "0")]),
    "whole_floats.tsv": (labels("1.0", "2.", "1e2", suffix=".tsv"), [("a", "1"), ("b", "2."), ("c", "100")]),
    "whole_floats.jsonl": (labels("1.0", "0.0", "1E+2", suffix=".jsonl"), [("a", "1"), ("b", "0"), ("c", "100")]),
    "whole_floats.parquet": (parquet(text=["a", "b"], label=[1.0, 0.0]), [("a", "1"), ("b", "0")]),
    "large_floats.csv": (labels("1e+20", "1.5e3", suffix=".csv"), [("a", str(10**20)), ("b", "1500")]),
    "large_floats.jsonl": (labels("1e+20", "1.5e3", suffix=".jsonl"), [("a", str(10**20)), ("b", "1500")]),
    "integers.csv": (labels("1", "-1", str(10**30), suffix=".csv"), [("a", "1"), ("b", "-1"), ("c", str(10**30))]),
    "integers.jsonl": (labels("1", "-1", str(10**30), suffix=".jsonl"), [("a", "1"), ("b", "-1"), ("c", str(10**30))]),
    "codes.csv": (labels("007", "+1", "1_0", suffix=".csv"), [("a", "007"), ("b", "+1"), ("c", "1_0")]),
    "codes.jsonl": (labels('"007"', '"+1"', '"1_0"', suffix=".jsonl"), [("a", "007"), ("b", "+1"), ("c", "1_0")]),
    "markup.csv": (labels("[/neg]", "[neg]", suffix=".csv"), [("a", "[/neg]"), ("b", "[neg]")]),
    "names_of_nothing.csv": (labels("None", "NA", "null", suffix=".csv"), [("a", "None"), ("b", "NA"), ("c", "null")]),
    "versions.csv": (labels("v3.10", "3.10.1", suffix=".csv"), [("a", "v3.10"), ("b", "3.10.1")]),
    "long_labels.csv": (
        labels("1" * 200_000 + "x", "[" + "1 " * 200_000, "1" * 200_000, suffix=".csv"),
        [("a", "1" * 200_000 + "x"), ("b", ("[" + "1 " * 200_000).strip()), ("c", "1" * 200_000)],
    ),
    "many_quotes.tsv": ("text\tlabel\n" + '"' * 400_000 + "x\tp\n", [('"' * 400_000 + "x", "p")]),
    "repeated_beside.jsonl": ('{"text": "a", "label": 1, "x": null}\n', [("a", "1")]),
}

REFUSED = {  # name: (content, words of the refusal)
    # --- nothing there ---
    "empty.csv": ("", "is empty"),
    "empty.jsonl": ("", "is empty"),
    "empty.json": ("", "is empty"),
    "empty.parquet": ("", "cannot be read as Parquet"),
    "blank.csv": ("\n \n", "is empty"),
    "bom_only.csv": (codecs.BOM_UTF8, "is empty"),
    "header.csv": ("text,label\n", "it has no rows"),
    "header.tsv": ("text\tlabel", "it has no rows"),
    "sep_only.csv": ("sep=;\n", "it has no rows"),
    "no_rows.json": ("[]", "it has no rows"),
    "no_rows.parquet": (parquet(text=[], label=[]), "it has no rows"),
    "nothing.csv.gz": (gzip.compress(b""), "is empty"),
    # --- columns ---
    "twice.csv": ("text,label,text\nx,a,y\n", "the column 'text' twice"),
    "twice_unnamed.csv": ("text,label,,\nx,a,,\n", "the column '' twice"),
    "twice.jsonl": ('{"text": "x", "text": "y", "label": 1}\n', "line 1 has the column 'text' twice"),
    "twice.json": ('[{"text": "x", "text": "y"}]', "the column 'text' twice"),
    "no_text.csv": ("a,label\nx,p\n", "no column that looks like a text"),
    "no_label.csv": ("text,b\nx,p\n", "no column that looks like a label"),
    "no_header.csv": ("good,p\nbad,n\n", "no column that looks like a text"),
    "no_header.jsonl": ('["good", "p"]\n', "must be an object"),
    "many_columns.csv": (",".join(f"c{i}" for i in range(3000)) + "\n" + "x," * 2999 + "x\n", "and 2980 more"),
    "twice.parquet": (parquet_twice(), "the column 'text' twice"),
    # --- rows ---
    "ragged.csv": ("text,label\nx,a\ny,b,c\n", "line 3 has 3 fields, the header has 2"),
    "short.csv": ("text,label\nx,a\ny\n", "line 3 has 1 fields, the header has 2"),
    "ragged.tsv": ("text\tlabel\nx\ta\ny\tb\tc\n", "line 3 has 3 fields separated by '\\t', the header has 2"),
    "ragged_and_quotes.tsv": ('text\tlabel\n"x" y\ta\ny\tb\tc\n', "line 3 has 3 fields"),
    "ragged_semicolons.csv": ("text;label\nx;a\ny;b;c\n", "line 3 has 3 fields separated by ';', the header has 2"),
    "unquoted_comma.csv": ("text,label\na, b,p\n", "line 2 has 3 fields"),
    "open_quote.csv": ('text,label\nx,a\n"y,b\nz,c\n', "begins in line 3"),
    "open_quote_semicolons.csv": ('text;label\nx;a\n"y;b\nz;c\n', "begins in line 3"),
    "after_the_quote.csv": ('text,label\n"x"y,a\n', "begins in line 2"),
    "late_line.csv": ('text,label\n"a\nb\nc",p\nx\n', "line 5 has 1 fields"),
    "excel_says_line.csv": ("sep=;\ntext;label\nx\n", "line 3 has 1 fields"),
    "missing_label.csv": ("text,label\nx,a\ny,\nz,b\n", "column 'label' has no value in line 3"),
    "blank_label.csv": ("text,label\nx,a\ny,  \n", "column 'label' has no value in line 3"),
    "missing_text.csv": ("text,label\n,a\n", "column 'text' has no value in line 2"),
    "missing_many.csv": ("text,label\n" + ",a\n" * 9, "line 2, line 3, line 4 and 6 more"),
    "missing_text.jsonl": ('{"text": "x", "label": 1}\n{"label": 2}\n', "column 'text' has no value in line 2"),
    "null_text.jsonl": ('{"text": null, "label": 1}\n', "column 'text' has no value in line 1"),
    "missing.parquet": (parquet(text=["a", None], label=["p", "n"]), "column 'text' has no value in row 1"),
    "nan_label.parquet": (parquet(text=["a", "b"], label=[1.0, float("nan")]), "column 'label' has no value in row 1"),
    "number_text.jsonl": ('{"text": 5, "label": 1}\n', "must hold text, got 5"),
    "list_text.jsonl": ('{"text": ["a"], "label": 1}\n', "must hold text, got ['a']"),
    "long_list_text.jsonl": (f'{{"text": {[1] * 9999}, "label": 1}}\n', "must hold text, got [1, 1"),
    "mixed_text.json": ('[{"text": "a", "label": 1}, {"text": true, "label": 1}]', "element 1: column 'text' must"),
    "bytes_text.parquet": (parquet(text=[b"a"], label=["p"]), "must hold text, got b'a'"),
    "half_a_pair.jsonl": ('{"text": "a\\ud800", "label": 1}\n', "must be text that UTF-8 can hold"),
    "half_a_pair_label.jsonl": ('{"text": "a", "label": "\\udcff"}\n', "must be text that UTF-8 can hold"),
    # --- labels that are none ---
    **{
        f"{name}{suffix}": (labels(written, suffix=suffix), words)
        for name, written, words in (
            ("regression", "0.5", "for numbers take --task regression"),
            ("small_regression", "1e-3", "for numbers take --task regression"),
            ("infinite", "1e400", "no finite number"),
        )
        for suffix in (".csv", ".tsv", ".jsonl")
    },
    "regression_as_text.jsonl": (labels('"0.5"', suffix=".jsonl"), "for numbers take --task regression"),
    "regression.parquet": (parquet(text=["a"], label=[0.25]), "for numbers take --task regression"),
    "regression_without_zero.csv": (labels(".5", suffix=".csv"), "for numbers take --task regression"),
    "regression_in_europe.csv": ("text;score\na;0,5\n".replace("score", "label"), "for numbers take --task regression"),
    "long_fraction.csv": (labels("1" * 100_000 + ".5", suffix=".csv"), "no finite number"),
    "small_fraction.csv": (labels("0." + "1" * 100_000, suffix=".csv"), "for numbers take --task regression"),
    "infinity.csv": (labels("inf", suffix=".csv"), "no finite number"),
    "infinity.jsonl": (labels("Infinity", suffix=".jsonl"), "no finite number"),
    "nan.csv": (labels("nan", suffix=".csv"), "column 'label' has no value in line 2"),
    "nan.jsonl": (labels("NaN", suffix=".jsonl"), "column 'label' has no value in line 1"),
    "date.csv": (labels("2020-01-31", suffix=".csv"), "(a time)"),
    "date.jsonl": (labels('"2020-01-31T12:00:00.000"', suffix=".jsonl"), "(a time)"),
    "list.csv": ('text,label\na,"[0, 1]"\n', "(a list;"),
    "list.jsonl": (labels("[0, 1]", suffix=".jsonl"), "(a list"),
    "names.csv": ("text,label\na,\"['x', 'y']\"\n", "(a list;"),
    "object.jsonl": (labels('{"a": 1}', suffix=".jsonl"), "(a dict)"),
    "joined.csv": (PLAIN + PLAIN, "line 4 repeats the header"),
    "joined.tsv": (TSV + "\ufeff" + TSV, "line 4 repeats the header"),
    # --- JSON ---
    "broken.jsonl": ('{"text": "x", "label": 1}\n\n{"text": \n', "line 3 is not JSON"),
    "two_in_a_line.jsonl": ('{"text": "x"} {"text": "y"}\n', "line 1 is not JSON: Extra data"),
    "list_of_numbers.jsonl": ("[1, 2]\n", "must be an object"),
    "lists.jsonl": ('["good", "p"]\n["bad", "n"]\n', "line 1 must be an object"),
    "pretty_objects.jsonl": (json.dumps(json.loads(JSON)[0], indent=2), "line 1 is not JSON"),
    "object.json": ('{"data": []}', "must hold a list"),
    "columns_of_pandas.json": ('{"text": {"0": "a"}, "label": {"0": 1}}', "must hold a list"),
    "number.json": ("5", "must hold a list"),
    "numbers.json": ("[5]", "element 0 must be an object"),
    "trailing_comma.json": ('[{"text": "a"},]', "line 1 is not JSON"),
    "python.json": ("[{'text': 'a'}]", "line 1 is not JSON"),
    "nul_in_string.jsonl": ('{"text": "a\0b", "label": 1}\n', "line 1 holds a NUL byte"),
    "deep.json": ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    "deep.jsonl": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    "many_digits.jsonl": (f'{{"text": "a", "label": {"9" * 5000}}}\n', "line 1 cannot be read"),
    "page.json": ("<html><body>404</body></html>", "line 1 is not JSON"),
    # --- not text ---
    "latin1.csv": ("text,label\ngood,a\ncafé,b\n".encode("latin1"), "line 3, byte 21 of the file is 0xe9; if western"),
    "latin1.jsonl": ('{"text": "café", "label": 1}'.encode("latin1"), "byte 13 of the file is 0xe9"),
    "smart_quotes.csv": ("text,label\n“good”,p\n".encode("cp1252"), "iconv -f cp1252 -t utf-8"),
    "shift_jis.csv": ("text,label\n良い、,p\n".encode("shift_jis"), "iconv -f ENCODING"),
    "one_wrong_byte.csv": ("text,label\ncafé,p\n".encode() + b"caf\xe9,n\n", "what stands before is UTF-8"),
    "cut_off.csv": ("text,label\ngood,p\ncafé".encode()[:-1], "it may be cut off"),
    "cut_off_utf16.csv": (PLAIN.encode("utf-16")[:-1], "it may be cut off"),
    "nul.csv": ("text,label\nx\0y,p\n", "line 2 holds a NUL byte"),
    "nul.tsv": ("text\tlabel\nx\0y\tp\n", "line 2 holds a NUL byte"),
    "zeros.csv": (b"\0" * 10_000, "line 1 holds a NUL byte"),
    "noise.csv": (bytes(range(1, 256)), "is not UTF-8"),
    "png.csv": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not UTF-8"),
    "excel_called.csv": (zipped("xl/workbook.xml", "<x/>"), "a zip archive or an Excel workbook"),
    "old_excel_called.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook"),
    "pdf_called.csv": (b"%PDF-1.7\n", "a PDF"),
    "damaged_arrow_called.csv": (b"ARROW1\0\0", "cannot be read as Arrow"),
    # --- damaged ---
    "broken.arrow": (b"ARROW1" + b"\0" * 50, "cannot be read as Arrow"),
    "cut_off.arrow": (arrow(text=["a"], label=["p"])[:-20], "cannot be read as Arrow"),
    "cut_off_stream.arrow": (arrow(stream=True, text=["a"] * 50, label=["p"] * 50)[:-200], "cannot be read as Arrow"),
    "csv_called.arrow": (PLAIN, "cannot be read as Arrow"),
    "old.feather": (b"FEA1" + b"\0" * 50, "is Feather of version 1"),
    "broken.parquet": (b"PAR1 and then nothing", "cannot be read as Parquet"),
    "cut_off.parquet": (parquet(text=["a"], label=["p"])[:-20], "cannot be read as Parquet"),
    "csv_called.parquet": (PLAIN, "cannot be read as Parquet"),
    "cut_off.csv.gz": (gzip.compress(PLAIN.encode())[:-9], "is packed (.gz) and damaged"),
    "flipped.csv.gz": (gzip.compress(PLAIN.encode())[:-6] + b"123456", "is packed (.gz) and damaged"),
    "cut_off.csv.bz2": (bz2.compress(PLAIN.encode())[:-9], "is packed (.bz2) and damaged"),
    "cut_off.csv.xz": (lzma.compress(PLAIN.encode())[:-9], "is packed (.xz) and damaged"),
    **BROKEN_BY_ZSTD,
    "bomb.csv.gz": (gzip.compress(b"a" * (70 * 2**20)), "unpacks to more than 100 times its size"),
    # --- other kinds of files ---
    "lines.txt": ("good\nbad\n", "has no columns"),
    "table.xlsx": (zipped("xl/workbook.xml", "<x/>"), "is an Excel workbook"),
    "table.xls": (b"\xd0\xcf\x11\xe0", "is an Excel workbook"),
    "table.ods": (zipped("content.xml", "<x/>"), "is a workbook"),
    "table.zip": (zipped("a.csv", PLAIN), "is an archive"),
    "table.csv.zip": (zipped("a.csv", PLAIN), "is an archive"),
    "table.tar.gz": (gzip.compress(b"x"), "is an archive"),
    "table.pkl": (b"\x80\x04", "can run any program"),
    "table.pickle": (b"\x80\x04", "can run any program"),
    "table.npy": (b"\x93NUMPY", "unknown file type .npy"),
    "table.xml": ("<a/>", "unknown file type .xml"),
    "table": (PLAIN, "unknown file type (none)"),
    "table.gz": (gzip.compress(PLAIN.encode()), "unknown file type (none)"),
    "table.csv~": (PLAIN, "unknown file type .csv~"),
    "either_way.tsv": ('text\tlabel\n"say ""so""\tp\nor not"\tn\n', "may be a row or the end of a quoted one"),
    "one_column.tsv": ('text\n"a\nb"\n', "may be a row or the end of a quoted one"),
}


def content(of: str | bytes) -> bytes:
    return of.encode() if isinstance(of, str) else of
