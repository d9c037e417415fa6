-- Reasons of dead letters are sealed beside their payloads: `error_message` is empty then. The key is
-- a keyed hash of the reason's first 500 characters, by which equal ones are found and counted.
ALTER TABLE queen.dead_letters ADD COLUMN sealed_error bytea;
ALTER TABLE queen.dead_letters ADD COLUMN error_key bytea;

DROP FUNCTION IF EXISTS queen.find_dead_letters_v2(
    smallint, uuid, text, text, timestamptz, timestamptz, text, text
);

-- Pops leave out what their server cannot read.
DROP FUNCTION IF EXISTS queen.pop_v2(
    smallint, integer[], bigint[], bigint[], integer[], integer[], integer[], uuid[], boolean[],
    bigint, bigint
);
DROP FUNCTION IF EXISTS queen.claimable_v2(smallint, integer[], bigint[], integer[], boolean);
DROP FUNCTION IF EXISTS queen.candidates(
    smallint, integer, bigint, bigint, bigint, interval, interval, timestamptz, boolean
);

-- Serve keys_in_use: which encryption keys the data needs, whatever its size. Only what is encrypted is
-- in them. While they are made pushes wait, some seconds for each ten million segments that there are.
CREATE INDEX segments_by_key ON queen.segments (
    shard, substring(body FROM CASE WHEN codec & 4 <> 0 THEN 2 ELSE 1 END FOR 8)
) WHERE codec & 2 <> 0;
CREATE INDEX dead_letters_by_key ON queen.dead_letters (shard, substring(payload FROM 2 FOR 8))
WHERE payload < '\x04';
