-- +goose Up

CREATE TABLE outbox (
    outbox_id   bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    event_id    text        NOT NULL,
    subject     text        NOT NULL,
    key         text        NOT NULL,
    payload     bytea       NOT NULL,
    traceparent text        NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT outbox_pkey PRIMARY KEY (outbox_id)
);
COMMENT ON TABLE outbox IS 'Events that are not yet known to be in NATS; the relay deletes those that are.';
COMMENT ON COLUMN outbox.outbox_id IS 'The order of events of one key. A lower number may be committed later: what is published is known by its absence, never by a number.';
COMMENT ON COLUMN outbox.event_id IS 'A ULID: by it NATS and the consumers know a repetition.';
COMMENT ON COLUMN outbox.key IS 'What it happened to: the order of events with one key is kept.';
COMMENT ON COLUMN outbox.traceparent IS 'The W3C trace context of who appended it, or empty.';

CREATE TABLE inbox (
    consumer    text        NOT NULL,
    event_id    text        NOT NULL,
    stream_seq  bigint      NOT NULL,
    handle_time timestamptz NOT NULL,
    CONSTRAINT inbox_pkey PRIMARY KEY (consumer, event_id)
);
COMMENT ON TABLE inbox IS 'Events that were handled or set aside, for as long as they can come again.';
COMMENT ON COLUMN inbox.stream_seq IS 'Its number in the stream: what is acknowledged up to there does not come again.';
CREATE INDEX inbox_handle_time_idx ON inbox (consumer, handle_time);

CREATE TABLE dead_letters (
    consumer    text        NOT NULL,
    event_id    text        NOT NULL,
    subject     text        NOT NULL,
    key         text        NOT NULL,
    payload     bytea       NOT NULL,
    traceparent text        NOT NULL,
    event_time  timestamptz NOT NULL,
    attempts    integer     NOT NULL,
    error       text        NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT dead_letters_pkey PRIMARY KEY (consumer, event_id),
    CONSTRAINT dead_letters_attempts_positive CHECK (attempts > 0)
);
COMMENT ON TABLE dead_letters IS 'Events that could not be handled and were set aside, until they are replayed or discarded.';

-- +goose Down

DROP TABLE dead_letters;
DROP TABLE inbox;
DROP TABLE outbox;
