//! The same Dockerfile makes the same layers whoever builds it, and on whatever file system.

use kiln_tests::{Kiln, Setting};
use xtask::compare::{SavedImage, config_differences, tree_differences};

/// Everything that a layer can hold and lose.
const DOCKERFILE: &str = r#"FROM busybox
COPY --chown=33:44 --chmod=640 a.txt /owned/deep/a.txt
COPY . /all/
RUN mkdir /made && chown 1234:4321 /made && chmod 2751 /made && echo x > /made/file && chmod 4755 /made/file
RUN ln /made/file /made/hard && ln -s ../made/file /made/soft && mkfifo /made/fifo
RUN rm -rf /all/sub && rm /etc/group && rm -rf /var/www && mkdir /var/www && echo new > /var/www/new
RUN mv /home /moved && touch -d '2001-02-03 04:05:06' /moved/old && ln -sfn /tmp /usr/bin2
RUN chmod 751 /tmp/.. && rm /made/hard && chown -h 5:6 /made/soft
WORKDIR /made/by/workdir
RUN echo "$PWD $(id -u):$(id -g)" > here
USER 65534:65534
RUN echo mine > /tmp/mine && mkdir /var/tmp/d && chmod 0 /var/tmp/d
USER www-data
WORKDIR relative
COPY --from=busybox /bin/busybox /etc/passwd /copied/
FROM scratch
COPY --from=0 / /whole/
ENV A=1
LABEL b="2"
EXPOSE 80
"#;

/// What the scripts of packages do with users and owners, and what is seen of it in the step, the next, and a copy.
const OWNERS: &str = r#"FROM debian:bookworm AS base
COPY --chmod=755 control postinst /package/DEBIAN/
COPY --chmod=755 postinst /package/usr/bin/owned-tool
COPY --chmod=755 is /bin/is
RUN <<EOF
set -e
chown 0:42 /package/usr/bin/owned-tool
chmod 2755 /package/usr/bin/owned-tool
ln -s owned-tool /package/usr/bin/owned-link
find /package -exec touch -hd @1 {} +
SOURCE_DATE_EPOCH=1 dpkg-deb --build /package /owned.deb
apt-get install -y /owned.deb
rm -rf /package /var/log/apt /var/log/dpkg.log /var/cache/apt/*.bin /var/cache/ldconfig
EOF
RUN <<EOF
set -e
is 'root:shadow:2755 owned:owned:2750' stat -c %U:%G:%a /usr/bin/owned-tool /var/lib/owned
is 'owned 900 8' su -s /bin/sh owned -c 'id -un; id -G'
adduser --disabled-password --gecos '' --uid 1000 ann
adduser ann mail
install -o ann -g mail -m 2750 -d /data
echo x > /data/f
ln -s f /data/l
chown -h 7:8 /data/l
is 'ann:mail:2750 root:mail:644 lp:mail:777' stat -c %U:%G:%a /data /data/f /data/l
tar -C / --mtime=@1 -cf /data.tar data
EOF
RUN <<EOF
set -e
rm -r /data/f
tar -C /tmp -xpf /data.tar
chown -R ann: /data
rm /data.tar
EOF
RUN <<EOF
set -e
is '1000:1000:2750 1000:1000:777' stat -c %u:%g:%a /data /data/l
is '1000:8:2750 0:8:644 7:8:777' stat -c %u:%g:%a /tmp/data /tmp/data/f /tmp/data/l
setpriv --reuid=33 --regid=33 --clear-groups mkdir -m 700 /tmp/mine
perl -e '($(, $)) = (5, "5 5"); ($<, $>) = (6, 6); open F, ">/tmp/perl"; print F "$< $> $( $)"'
is '6 6 5 5 5 5' cat /tmp/perl
cp -a /tmp/perl /tmp/copy
EOF
USER 1000
WORKDIR /srv/work
RUN <<EOF
set -e
is '1000 ann 1000 8 100' sh -c 'id -u; id -un; id -G'
cd /home/ann
mkdir a
umask 027
echo x > a/b
ln -s b a/c
is '1000:1000:755 1000:1000:640 1000:1000:777' stat -c %u:%g:%a a a/b a/c
! chown 33 a/b
! setpriv --reuid=0 true
is '1000:755' stat -c %u:%a /srv/work
EOF
USER root
RUN <<EOF
set -e
is '1000:8:2750 1000:1000:640' stat -c %u:%g:%a /tmp/data /home/ann/a/b
EOF
FROM debian:bookworm
COPY --from=base /data /usr/bin/owned-tool /tmp/perl /copied/
COPY --from=base --chown=33:8 /tmp/data /given/
COPY --from=base /bin/is /bin/
RUN is '1000:1000:777 0:42:2755 6:5:644 33:8:644' stat -c %u:%g:%a /copied/l /copied/owned-tool /copied/perl /given/f
"#;

/// `is WHAT COMMAND...`: whether a command prints this, lines joined.
const IS: &str = r#"#!/bin/sh
want=$1
shift
got=$(echo $("$@"))
[ "$got" = "$want" ] && exit
echo "$*: $got, expected $want" >&2
exit 1
"#;

const CONTROL: &str =
    "Package: owned\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: owners\n";

const POSTINST: &str = "#!/bin/sh
set -e
addgroup --system --gid 900 owned
adduser --system --uid 900 --gid 900 --home /var/lib/owned owned
adduser owned mail
chown owned:owned /var/lib/owned
chmod 2750 /var/lib/owned
";

#[test]
fn layers_are_equal_in_all_settings() {
    let files = [
        ("Dockerfile", DOCKERFILE),
        ("a.txt", "a\n"),
        ("sub/b.txt", "b\n"),
        ("sub/deeper/c.txt", "c\n"),
    ];
    agree(&Setting::ALL, "busybox", &files, &["0", "1"]);
}

#[test]
fn owners_are_equal_with_one_id() {
    let files = [
        ("Dockerfile", OWNERS),
        ("control", CONTROL),
        ("is", IS),
        ("postinst", POSTINST),
    ];
    // A plain tree would copy the base for every step, which says nothing about owners.
    let settings = [Setting::Root, Setting::User, Setting::OneId];
    agree(&settings, "debian", &files, &["base", "1"]);
}

/// Builds the stages in the settings and compares the images with those of the first.
fn agree(settings: &[Setting], base: &str, files: &[(&str, &str)], stages: &[&str]) {
    let mut images: Vec<(String, SavedImage)> = Vec::new();
    for &setting in settings {
        let Some(kiln) = Kiln::fresh(setting, &[base]) else {
            continue;
        };
        let context = kiln.context(files);
        for &target in stages {
            kiln.build(&["-t", "agreed", "--target", target, &context])
                .ok();
            images.push((format!("{setting:?}, stage {target}"), kiln.save("agreed")));
        }
    }
    let (first, rest) = images.split_at(images.len().min(stages.len()));
    for (number, (name, image)) in rest.iter().enumerate() {
        let (first_name, first) = &first[number % stages.len()];
        assert_eq!(
            first.layers.len(),
            image.layers.len(),
            "{first_name} and {name}"
        );
        let mut differences = config_differences(&first.config, &image.config);
        for (at, (left, right)) in first.layers.iter().zip(&image.layers).enumerate() {
            differences.extend(
                tree_differences(left, right)
                    .into_iter()
                    .map(|line| format!("layer {at}: {line}")),
            );
        }
        assert!(
            differences.is_empty(),
            "- {first_name}, + {name}:\n{}",
            differences.join("\n")
        );
    }
}
