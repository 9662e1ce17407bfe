-- +goose Up

CREATE TABLE watches (
    organisation_id text        NOT NULL,
    expire_time     timestamptz NOT NULL,
    CONSTRAINT watches_pkey PRIMARY KEY (organisation_id)
);
COMMENT ON TABLE watches IS 'Organisations whose devices somebody watches: only their plays are told to all instances.';

-- +goose Down

DROP TABLE watches;
