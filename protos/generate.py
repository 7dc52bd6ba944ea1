"""Makes the Python stubs, and the image that buf lints, from the protos of this folder.

`buf/validate/validate.proto` is in no wheel: its descriptor is taken from protovalidate and given to the compiler in a
descriptor set. The compiler lives in an environment of its own (protobuf 6), so that what it makes loads beside clients
that hold protobuf 6 and beside protobuf 7.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from google.protobuf import (
    descriptor_pb2,
    duration_pb2,
    field_mask_pb2,
    timestamp_pb2,
)
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent


def dependencies() -> bytes:
    """Gives a FileDescriptorSet of validate.proto and the well-known types it and our protos import."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, timestamp_pb2, field_mask_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.append(descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary()))
    return files.SerializeToString()


def compile_protos(compiler: Path, *options: str, extra: tuple[str, ...] = ()) -> None:
    """Runs protoc of the compiler's environment over every proto of ours."""
    site = Path(find_spec("google.rpc").submodule_search_locations[0]).parents[1]  # type: ignore[union-attr,index]
    protos = sorted(str(p.relative_to(ROOT / "protos")) for p in (ROOT / "protos").rglob("*.proto"))
    with tempfile.NamedTemporaryFile(suffix=".binpb") as known:
        known.write(dependencies())
        known.flush()
        subprocess.run(
            [
                compiler,
                "-m",
                "grpc_tools.protoc",
                f"--descriptor_set_in={known.name}",
                "-I",
                ROOT / "protos",
                "-I",
                site,
                *options,
                *extra,
                *protos,
            ],
            check=True,
        )


def main() -> None:
    """Writes stubs below services/, or one image file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", type=Path, required=True, help="python that has grpcio-tools")
    parser.add_argument("--image", type=Path, help="write a FileDescriptorSet with comments here, and no stubs")
    args = parser.parse_args()
    if args.image:
        compile_protos(
            args.compiler, "--include_imports", "--include_source_info", f"--descriptor_set_out={args.image}"
        )
        return
    out = ROOT / "services"
    compile_protos(
        args.compiler,
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        extra=("buf/validate/validate.proto",),
    )


if __name__ == "__main__":
    main()
