"""Reads a finished quickstart with pandas, DuckDB, datasets and transformers.

    pip install -r tests/parity/requirements.txt
    python tests/parity/read_with_others.py artifacts quickstart

Every Parquet port must give the same rows to all three readers, and the rows that its manifest counts.
"""
import json, pathlib, sys

import duckdb, pandas, pyarrow.parquet
import datasets


def files(store, manifest, port):
    base = store / "artifacts" / manifest["stage"] / manifest["fingerprint"] / "attempts" / manifest["attempt"] / "files" / port
    return [base / f["path"] for f in manifest["ports"][port]["files"]]


def main(store, pipeline):
    store = pathlib.Path(store)
    checked = 0
    for pointer in sorted((store / "pipelines" / pipeline).glob("*.json")):
        a = json.loads(pointer.read_text())["artifact"]
        manifest = json.loads((store / "artifacts" / a["stage"] / a["fingerprint"] / f"{a['edition']}.json").read_text())
        for port in manifest["ports"]:
            paths = [p for p in files(store, manifest, port) if p.suffix == ".parquet"]
            if not paths:
                continue
            rows = sum(f["rows"] for f in manifest["ports"][port]["files"])
            by_pandas = sum(len(pandas.read_parquet(p)) for p in paths)
            by_duckdb = duckdb.sql(f"select count(*) from read_parquet({[str(p) for p in paths]})").fetchall()[0][0]
            by_datasets = datasets.load_dataset("parquet", data_files=[str(p) for p in paths], split="train").num_rows
            assert rows == by_pandas == by_duckdb == by_datasets, (pointer.stem, port, rows, by_pandas, by_duckdb, by_datasets)
            columns = pyarrow.parquet.read_schema(paths[0]).names
            print(f"{pointer.stem}.{port}: {rows} rows by all, columns {', '.join(columns)}")
            checked += 1
    assert checked, "no Parquet was found"
    print(f"{checked} ports agree")


if __name__ == "__main__":
    main(*sys.argv[1:3])
