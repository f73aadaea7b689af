"""The SQL of the plan. Only constants are formatted into it; values are parameters. Its tables:

listed    `rows.LISTED` and `seq`, the position in the listing
known     `rows.KNOWN`
status    each listed image with the reason to caption or to skip it
todo      images to caption; `copy` is true if an earlier one has the same content
copies    path and previous file of each copy, and `first`, the path of the image with the same content
"""

# ruff: noqa: S608

from __future__ import annotations

# A path with more than one row counts as captioned if one of them is a caption.
STATUS = """
    create or replace table status as
    select l.*, k.file as file, coalesce(l.modified < $since, false) as older,
        case
            when k.path is null then 'new'
            when l.error_class in ('missing', 'unsupported') and k.error_class is null then 'gone'
            when k.vanished then 'restored'
            when k.error_class is not null and l.content_tag is not distinct from k.content_tag
                then case when list_contains($retry, k.error_class) then 'rejected before' else 'rejected' end
            when l.content_tag is null or l.content_tag is distinct from k.content_tag then 'changed'
            when k.model_id <> $model then 'other model'
            when $all then 'asked'
            else 'done'
        end as reason
    from listed l
    left join (
        select path, min_by(known, (error_class is not null, file)) as k from known group by path
    ) using (path)
"""

CHOSEN = "reason in (select unnest($wanted)) and not older"
# Images that were rejected before come last, or they would use up the --limit of every run.
_ORDER = "order by reason = 'rejected before', seq"


def todo(dedupe: bool) -> str:
    """Creates `todo`, at most $limit rows."""
    copy = (
        f"row_number() over (partition by content_tag, size {_ORDER}) > 1 and tag_is_digest and error_class is null"
        if dedupe
        else "false"
    )
    return f"""
        create or replace table todo as
        select *, {copy} as copy from status where {CHOSEN} {_ORDER} limit $limit
    """


_TODO_COLUMNS = """path, coalesce(url, path) as url, coalesce(part, '') as part,
    coalesce(content_tag, '') as content_tag,
    coalesce(error_class, '') as error_class, coalesce(detail, '') as detail,
    coalesce($files[file + 1], '') as previous_file"""

COPIES = f"""
    create or replace table copies as
    select copy.path, copy.previous_file, first.path as first
    from (select {_TODO_COLUMNS}, size from todo where copy) copy
    join todo first on not first.copy and first.tag_is_digest and first.content_tag = copy.content_tag
        and first.size is not distinct from copy.size
"""
COPIES_INDEX = "create index copies_of on copies (first)"  # queried once per block
COPIES_OF = (
    "select path, previous_file, first from copies where first in (select unnest($paths)) order by path"
)
REASONS = "select reason, count(*) from todo group by reason"
SIZES = """
    select count(*) filter (not copy), count(*) filter (copy), coalesce(sum(size) filter (not copy), 0) from todo
"""
PENDING = f"select count(*) from status where {CHOSEN}"
SKIPPED = f"""
    select case when older and reason in (select unnest($wanted)) then 'older' else reason end, count(*)
    from status where not ({CHOSEN}) group by 1
"""
# Grouped by output file, so that the rows that replace those of a file are finished together.
_BATCHES = f"""
    select {_TODO_COLUMNS} from todo where not copy
    order by reason = 'rejected before', file nulls first, seq
"""
REPEATED = "select path from known group by path having count(*) > 1 order by path"
# Of a video that is listed as a whole, the frames are not known: their rows stay.
VANISHED = """
    select file, list(path order by path) from known anti join listed using (path)
    anti join listed video on video.path = regexp_replace(known.path, '#t=[0-9.]+$', '')
    where len(list_filter($prefixes, lambda p : starts_with(path, p))) > 0 and ($marked or not vanished)
    group by file order by file
"""


ROWS_BELOW = """
    select count(*) from known where len(list_filter($prefixes, lambda p : starts_with(path, p))) > 0
"""
LISTED_FOLDERS = "select distinct regexp_replace(path, '[^/]*$', '') from listed"


def batches_to(file: str) -> str:
    """Writes the images to caption, with `rows.TODO` columns, to a Parquet file."""
    quoted = "'" + file.replace("'", "''") + "'"
    return f"copy ({_BATCHES}) to {quoted} (format parquet)"
