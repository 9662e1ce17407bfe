-- +goose Up

-- +goose StatementBegin
CREATE FUNCTION drop_play_partitions(first_kept date) RETURNS integer
LANGUAGE plpgsql
-- Plays wait behind whoever waits for this lock: that gives up soon, and comes again.
SET lock_timeout = '500ms'
AS $$
DECLARE
    past    text;
    dropped integer := 0;
BEGIN
    -- Instances take turns, also with those that make partitions.
    PERFORM pg_advisory_xact_lock(x'6d6172710101'::bigint);
    FOR past IN
        SELECT c.relname FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'plays'::regclass AND c.relname ~ '^plays_[0-9]{8}$'
            AND c.relname < 'plays_' || to_char(first_kept, 'YYYYMMDD')
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE %I', past);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION drop_play_partitions IS 'Drops the partitions of plays for the days before this one, and says how many.';

-- +goose Down

DROP FUNCTION drop_play_partitions;
