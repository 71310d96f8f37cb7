//! Golden plans: whole Dockerfiles and the graphs that come of them.

mod common;

use common::{World, amd64, image, options, show};
use insta::assert_snapshot;
use kiln_frontend::Context;
use kiln_graph::Network;
use kiln_image::Platform;

#[test]
fn several_stages() {
    assert_snapshot!(show(
        r#"# syntax=docker/dockerfile:1
ARG VERSION=1.2
FROM golang:$VERSION AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG LDFLAGS
RUN go build -ldflags="$LDFLAGS" \
    -o /out/app .

FROM unused AS unused
RUN exit 1

FROM alpine
ENV A=1 B="two words"
RUN apk add ca-certificates
COPY --from=build /out/app /usr/bin/
USER nobody
WORKDIR data
EXPOSE 80 443/tcp 9000-9001/udp
LABEL org.example.name="x y"
ENTRYPOINT ["/usr/bin/app"]
CMD ["--serve", "a\"b"]
"#
    ));
}

#[test]
fn one_stage() {
    assert_snapshot!(show("FROM busybox AS only\nRUN echo hi\n"));
}

#[test]
fn nothing_but_metadata() {
    assert_snapshot!(show("FROM scratch\nENV a=b\nLABEL x=y\nCMD [\"/x\"]\n"));
}

#[test]
fn scratch_with_a_file() {
    assert_snapshot!(show("FROM scratch\nCOPY hello /\n"));
}

#[test]
fn heredocs() {
    assert_snapshot!(show(
        r#"FROM busybox
ARG name=world
RUN <<EOF
echo one
echo two
EOF
RUN <<-"EOF"
	#!/usr/bin/env python3
	print("hi")
EOF
RUN cat <<A >/a && 3<<-B cat <&3 >/b
$name A
A
	tabs
	B
COPY <<greeting.txt <<'raw.txt' /etc/
hello "$name" \$x
greeting.txt
hello "$name"
raw.txt
"#
    ));
}

#[test]
fn mounts() {
    assert_snapshot!(show(
        r"FROM alpine AS tools
RUN true
FROM alpine
ARG cachedir=/root/.cache
WORKDIR /w
RUN --mount=target=. --mount=type=cache,target=$cachedir,sharing=locked,uid=5,mode=0700 \
    --mount=type=bind,from=tools,source=usr,dst=/tools,rw \
    --mount=type=cache,id=seeded,from=tools,src=/seed,target=seeded \
    --mount=type=tmpfs,target=/t,size=1m \
    --mount=type=secret,id=tok,required \
    --mount=type=secret,id=e,env=TOKEN \
    --mount=type=secret,id=b,env=BOTH,target=/both,mode=0440 \
    --mount=type=ssh --mount=type=ssh,id=x,target=/agent \
    --network=none --security=insecure make
"
    ));
}

#[test]
fn transfers() {
    assert_snapshot!(show(
        r#"FROM alpine AS a
RUN true
FROM alpine
WORKDIR /app
ARG who=daemon
COPY a b* ../c ./
COPY --chown=$who:7 --chmod=u=rwX,go=rX dir /
COPY --link --from=0 --chown=1:2 /x /y
COPY --link --chmod=644 f .
COPY --parents --exclude=*.md src/./lib/*.rs docs/ /p
COPY --from=docker.io/library/busybox:musl /bin/busybox /bin/
ADD archive.tar.gz /opt
ADD --unpack=false archive.tar /opt/
ADD --checksum=sha256:1111111111111111111111111111111111111111111111111111111111111111 https://example.com/a/b%20c.tgz?x=y /dl/
ADD https://example.com/ /dl/
ADD --keep-git-dir https://example.com/r.git#v1:sub /git
ADD git@example.com:a/b.git?branch=main&subdir=d /git2
COPY ["with space", "/d st/"]
"#
    ));
}

#[test]
fn metadata() {
    assert_snapshot!(show(
        r#"FROM alpine
MAINTAINER somebody <a@b.c>
SHELL ["/bin/bash", "-eo", "pipefail", "-c"]
RUN a | b
ENTRYPOINT run me
CMD shell form
VOLUME /data /more
VOLUME ["/j son"]
STOPSIGNAL SIGRTMIN+3
HEALTHCHECK --interval=1m30s --timeout=250ms --retries=3 CMD curl -f localhost
ONBUILD RUN echo trigger
USER 1000:1000
WORKDIR /home/u
WORKDIR ..
WORKDIR /
EXPOSE 53/UDP 127.0.0.1:80:8080
ENV PATH=$PATH:/x
"#
    ));
}

#[test]
fn triggers() {
    let world = World {
        config: image(|config| {
            config.config.on_build = vec![
                "COPY --from=helper /h /h".to_owned(),
                "RUN build it".to_owned(),
            ];
        }),
    };
    let text = "FROM builder\nRUN own\n";
    assert_snapshot!(world.show(text, &options()));
    let rounds = world.plan(text, &options()).0;
    assert_eq!(
        rounds.len(),
        2,
        "the trigger's image is known only when the base is"
    );
}

#[test]
fn triggers_of_a_stage_of_the_same_file() {
    assert_snapshot!(show(
        "FROM alpine AS base\nONBUILD RUN after\nRUN before\nFROM base\nRUN own\n"
    ));
}

#[test]
fn platforms() {
    let mut options = options();
    options.target_platform = Platform::new("linux", "arm64", "");
    options.platform_requested = true;
    options.multi_platform = true;
    assert_snapshot!(World::default().show(
        r"FROM --platform=$BUILDPLATFORM golang AS build
ARG TARGETPLATFORM TARGETARCH
RUN go build
FROM alpine
COPY --from=build /x /x
",
        &options
    ));
}

#[test]
fn options_that_steer() {
    let mut options = options();
    options.no_cache = true;
    options.network = Network::None;
    options.hostname = "h".to_owned();
    options.extra_hosts = vec![("a".to_owned(), "1.2.3.4".to_owned())];
    options.ulimits = vec![("nofile".to_owned(), 10, 20)];
    options.shm_size = 1 << 20;
    options.source_date_epoch = Some(1_700_000_000);
    options
        .labels
        .insert("given".to_owned(), "label".to_owned());
    options
        .build_args
        .insert("HTTP_PROXY".to_owned(), "p:1".to_owned());
    options
        .build_args
        .insert("X".to_owned(), "given".to_owned());
    options
        .build_args
        .insert("BUILDKIT_CACHE_MOUNT_NS".to_owned(), "ns".to_owned());
    assert_snapshot!(World::default().show(
        r"FROM alpine
LABEL given=file other=file
ARG X=default
WORKDIR /w
COPY x .
RUN --mount=type=cache,target=/c --network=host echo $X
",
        &options
    ));
}

#[test]
fn named_contexts() {
    let mut options = options();
    options
        .contexts
        .insert("alpine".to_owned(), Context::Image("other:1".to_owned()));
    options.contexts.insert("build".to_owned(), Context::Local);
    options
        .contexts
        .insert("layout".to_owned(), Context::OciLayout("v1".to_owned()));
    options.contexts.insert(
        "repo".to_owned(),
        Context::Git("https://e.x/r.git#main".to_owned()),
    );
    assert_snapshot!(World::default().show(
        r"FROM golang AS build
RUN never run
FROM layout AS l
FROM alpine:latest
COPY --from=build /a /a
COPY --from=l /b /b
COPY --from=repo /c /c
RUN --mount=from=build,target=/m true
",
        &options
    ));
}

#[test]
fn context_from_elsewhere() {
    for context in [Context::Git("https://e.x/r.git".to_owned()), Context::Empty] {
        let mut options = options();
        options.context = context.clone();
        let name = format!("context_{context:?}")
            .split('(')
            .next()
            .unwrap()
            .to_lowercase();
        assert_snapshot!(
            name,
            World::default().show("FROM scratch\nCOPY . /\n", &options)
        );
    }
}

#[test]
fn the_needs_of_all_stages_at_once() {
    let text = "FROM a AS a\nCOPY x /\nFROM b AS b\nFROM unused AS u\nFROM c\nCOPY --from=a /x /\nCOPY --from=b /x /\nCOPY --from=img /x /\n";
    let (rounds, plan) = World::default().plan(text, &options());
    assert!(plan.is_ok());
    assert_eq!(rounds.len(), 1);
    let shown: Vec<String> = rounds[0]
        .iter()
        .map(|need| match need {
            kiln_frontend::Need::ImageConfig {
                reference,
                platform,
                place,
            } => {
                assert_eq!(*platform, amd64());
                format!("{} {reference} {:?}", place.title, place.lines)
            }
            kiln_frontend::Need::IgnoreFile { context } => format!("ignore {context}"),
        })
        .collect();
    assert_snapshot!(shown.join("\n"));
}
