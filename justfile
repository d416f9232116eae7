# Short verbs for `just`; nothing needs it.

default: check

check:
    .ci/run

test *ARGS:
    ./test {{ARGS}}

boot GUEST="debian":
    cargo run --release -- run {{GUEST}}

nightly:
    .ci/nightly
