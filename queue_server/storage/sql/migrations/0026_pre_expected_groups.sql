-- Groups that popped a queue before it existed. They are registered when it is created, from the moment
-- of their first pop; a pop creates no queue.
--
-- Expand only: a new table.
CREATE TABLE queen.expected_groups (
    queue text NOT NULL,  -- its name
    consumer_group text NOT NULL,
    mode text NOT NULL,
    starts_at timestamptz NOT NULL,
    conflation boolean NOT NULL,
    asked_at timestamptz NOT NULL,  -- about when it asked last: to the hour
    -- Serves the creation of the queue.
    PRIMARY KEY (queue, consumer_group)
);

-- Serves the deletion of those that have not asked for long.
CREATE INDEX expected_groups_by_time ON queen.expected_groups (asked_at);
