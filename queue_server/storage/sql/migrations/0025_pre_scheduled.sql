-- What is not due yet is counted apart. These functions return a column more (functions/statistics.sql).
DROP FUNCTION IF EXISTS queen.partition_statistics(smallint, uuid[]);
DROP FUNCTION IF EXISTS queen.group_places(smallint, text, text);
