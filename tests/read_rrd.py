"""Read an RRD file into plain values. A program of its own, run with the newest SDK: see `recordings.py`."""

import pickle
import sys
import warnings

import pyarrow as pa
import rerun.chunk


def plain(values: pa.Array) -> object:
    """The values of one row: a tensor's shape, names and numbers, bytes as an array, anything else as a list."""
    if pa.types.is_struct(values.type) and values.type.get_field_index("buffer") >= 0 and len(values):
        numbers = values.field("buffer")
        child = numbers.field(numbers.type_codes[0].as_py()).flatten().to_numpy()
        names = values.field("names").to_pylist()[0]
        return values.field("shape").to_pylist()[0], names, child
    if pa.types.is_list(values.type) and values.type.value_type == pa.uint8():
        return values.flatten().to_numpy()
    return values.to_pylist()


def main() -> None:
    """Write a pickle of the recordings in the file argv[1], and of the application ids of its blueprints."""
    warnings.simplefilter("ignore")
    reader = rerun.chunk.RrdReader(sys.argv[1])
    stores = []
    for entry in reader.recordings():
        rows = []
        for chunk in reader.stream(store=entry):
            batch = chunk.to_record_batch()
            kinds = {field.name: (field.metadata or {}).get(b"rerun:kind") for field in batch.schema}
            for index in range(batch.num_rows):
                values = {name: batch.column(name)[index] for name in kinds}
                times = {
                    name: value.value if hasattr(value, "value") else value.as_py()
                    for name, value in values.items()
                    if kinds[name] == b"index"
                }
                data = {
                    name: plain(value.values)
                    for name, value in values.items()
                    if kinds[name] == b"data" and value.is_valid
                }
                rows.append((chunk.entity_path, times, data))
        stores.append((entry.application_id, entry.recording_id, rows))
    blueprints = [entry.application_id for entry in reader.blueprints()]
    pickle.dump((stores, blueprints), sys.stdout.buffer)  # piece by piece: a single write ends at 2 GiB


if __name__ == "__main__":
    main()
