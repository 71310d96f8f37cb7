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

#[test]
fn layers_are_equal_in_all_settings() {
    let files = [
        ("Dockerfile", DOCKERFILE),
        ("a.txt", "a\n"),
        ("sub/b.txt", "b\n"),
        ("sub/deeper/c.txt", "c\n"),
    ];
    let mut images: Vec<(String, SavedImage)> = Vec::new();
    for setting in Setting::ALL {
        let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
            continue;
        };
        let context = kiln.context(&files);
        for target in ["0", "1"] {
            kiln.build(&["-t", "agreed", "--target", target, &context])
                .ok();
            images.push((format!("{setting:?}, stage {target}"), kiln.save("agreed")));
        }
    }
    let (stages, rest) = images.split_at(images.len().min(2));
    for (number, (name, image)) in rest.iter().enumerate() {
        let (first_name, first) = &stages[number % 2];
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
