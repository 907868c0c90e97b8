# The image of all Cairn programs: three static binaries and nothing else, as a user without rights.
#
#   docker build -t cairn .
#   docker run --rm cairn --help

FROM rust:1.95-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends protobuf-compiler libprotobuf-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Binaries lie below the target's name: .cargo/config.toml names it, so that they can be linked statically.
RUN cargo build --locked --release -p cairn-node -p cairn-operator -p cairn-cli --bins \
 && mkdir -p /image/data /image/certs /image/tmp \
 && cp "target/$(rustc --print host-tuple)/release/cairn-node" \
       "target/$(rustc --print host-tuple)/release/cairn-operator" \
       "target/$(rustc --print host-tuple)/release/cairn" /image/

FROM scratch
# Volumes that are mounted at these folders for the first time take their owner from here.
COPY --from=build --chown=65532:65532 /image/ /
USER 65532:65532
EXPOSE 50051 8080
ENTRYPOINT ["/cairn-node"]
