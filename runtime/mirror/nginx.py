"""The nginx configuration that serves an export as the mirror itself would: types, digests and error codes."""

from pathlib import Path
from string import Template
from typing import Final

from manifests.errors import UsageError
from runtime.mirror.catalog import MAIN, Catalog, Repository

_CONF: Final = Template("""\
# Rendered by `runtime mirror --export`. Include it inside http { } of nginx 1.18 or newer.
# The two sizes are for the names below; if nginx says that they are set twice, keep the larger ones.
map_hash_bucket_size $bucket;
map_hash_max_size $entries;

map $$http_accept $$sealift_page {
    default index.html;
    "~application/vnd\\.pypi\\.simple\\.(v1|latest)\\+json" index.json;
}
map $$uri $$sealift_commit {
    default "";
$commits}
map $$uri $$sealift_digest {
    default "";
$digests}
map $$uri $$sealift_missing {
    default RepoNotFound;
$missing}
map $$status $$sealift_error {
    default "";
    404 $$sealift_missing;
}

server {
    listen $listen;
    root "$root";
    absolute_redirect off;
    sendfile on;
    tcp_nopush on;
    add_header Cache-Control no-cache;

    location = /simple { return 301 /simple/; }
    location /simple/ {
        types { text/html html; application/vnd.pypi.simple.v1+json json; }
        add_header Cache-Control no-cache;
        add_header Vary Accept;
        rewrite ^(/simple/[^/]+)$$ $$1/ permanent;
        try_files $$uri$$sealift_page =404;
    }
    location /wheels/ {
        types { }
        default_type application/octet-stream;
    }
    location /api/ {
        types { }
        default_type application/json;
        add_header Cache-Control no-cache;
        add_header X-Error-Code $$sealift_error always;
        try_files $$uri/index.json =404;
    }
    location / {
        types { }
        default_type application/octet-stream;
        add_header Cache-Control no-cache;
        add_header X-Repo-Commit $$sealift_commit always;
        add_header X-Linked-Etag $$sealift_digest;
        add_header X-Error-Code $$sealift_error always;
    }
}
""")


def render_nginx(catalog: Catalog, root: Path, listen: str) -> str:
    """Return the text of ``nginx.conf``.

    Args:
        catalog: What was exported.
        root: The absolute folder of the exported files.
        listen: Address and port.

    Raises:
        UsageError: The folder has a character that nginx would read as something else.
    """
    if found := next((letter for letter in str(root) if letter in '"$\\{};' or not letter.isprintable()), None):
        raise UsageError(f"{root}: {found!r} in a path means something to nginx", hint="choose another folder")
    digests = [line for repository in catalog.repositories.values() for line in _digests(repository)]
    longest = max((len(line.encode()) for line in digests), default=0)
    return _CONF.substitute(
        bucket=max(128, 1 << longest.bit_length()),
        entries=max(2048, 1 << (2 * len(digests)).bit_length()),
        commits="".join(line for repository in catalog.repositories.values() for line in _commits(repository)),
        digests="".join(digests),
        missing="".join(line for repository in catalog.repositories.values() for line in _missing(repository)),
        listen=listen,
        root=root,
    )


def _digests(repository: Repository) -> list[str]:
    return [
        f'    "/{repository.name}/resolve/{revision}/{path}" "\\"{file.entry.sha256}\\"";\n'
        for revision, commit in _revisions(repository)
        for path, file in repository.revisions[commit].files.items()
    ]


def _commits(repository: Repository) -> list[str]:
    name = _quoted(repository.name)
    return [f'    "~^/{name}/resolve/{revision}/" {commit};\n' for revision, commit in _revisions(repository)]


def _missing(repository: Repository) -> list[str]:
    name, revisions = _quoted(repository.name), "|".join(revision for revision, _ in _revisions(repository))
    return [
        f'    "~^(/api/models)?/{name}/(resolve|tree)/({revisions})/" EntryNotFound;\n',
        f'    "~^(/api/models)?/{name}/(resolve|tree|revision)/" RevisionNotFound;\n',
    ]


def _revisions(repository: Repository) -> list[tuple[str, str]]:
    return [(MAIN, repository.main.commit), *((commit, commit) for commit in repository.revisions)]


def _quoted(name: str) -> str:
    return name.replace(".", "\\.")
