-- name: campaign
SELECT o_service FROM queen.campaign(
    %(services)s::text[], %(holder)s::text, %(seconds)s::integer, %(now)s::timestamptz
)

-- name: resign
SELECT queen.resign(%(holder)s::text)
