# The front door. Every target is idempotent and installs what it needs through apt.

.PHONY: help build demo test check clean

help:
	@echo 'make demo   install what is missing, build, run a sandbox in each class, show how long each phase took, stop'
	@echo 'make test   install what the tests need, check the sources, run every test'
	@echo 'make build  build the atoll binary: target/release/atoll'
	@echo 'make check  formatting, lints, dependency direction, licences, sizes: without running a test'

build:
	scripts/install-dependencies.sh build
	cargo build --release --locked --package atoll

demo:
	scripts/install-dependencies.sh demo
	cargo build --release --locked --package atoll
	scripts/demo.sh target/release/atoll

test:
	scripts/install-dependencies.sh test
	scripts/test.sh

check:
	scripts/check.sh

clean:
	cargo clean
