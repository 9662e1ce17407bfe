-- +goose Up

CREATE TABLE devices (
    device_id       text             NOT NULL,
    organisation_id text             NOT NULL,
    name            text             NOT NULL,
    latitude        double precision NOT NULL,
    longitude       double precision NOT NULL,
    address         text             NOT NULL,
    venue_type      text             NOT NULL,
    width_px        integer          NOT NULL,
    height_px       integer          NOT NULL,
    loop_seconds    integer          NOT NULL,
    slot_seconds    integer          NOT NULL,
    price_minor     bigint           NOT NULL,
    currency        text             NOT NULL,
    time_zone       text             NOT NULL,
    hours           jsonb            NOT NULL,
    revision        bigint           NOT NULL,
    create_time     timestamptz      NOT NULL,
    update_time     timestamptz      NOT NULL,
    claim_time      timestamptz,
    revoke_time     timestamptz,
    delete_time     timestamptz,
    secret_hash     bytea,
    CONSTRAINT devices_pkey PRIMARY KEY (device_id),
    CONSTRAINT devices_id_form CHECK (device_id LIKE 'dev\_%' AND char_length(device_id) = 30),
    CONSTRAINT devices_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT devices_place_on_earth CHECK (latitude BETWEEN -90 AND 90 AND longitude BETWEEN -180 AND 180),
    CONSTRAINT devices_loop_of_slots CHECK (slot_seconds > 0 AND loop_seconds > 0 AND loop_seconds % slot_seconds = 0),
    CONSTRAINT devices_price_not_negative CHECK (price_minor >= 0),
    CONSTRAINT devices_secret_hash_length CHECK (octet_length(secret_hash) = 32),
    -- Whoever may not connect has nothing to connect with.
    CONSTRAINT devices_secret_only_claimed CHECK (secret_hash IS NULL OR (claim_time IS NOT NULL AND revoke_time IS NULL AND delete_time IS NULL))
);
COMMENT ON TABLE devices IS 'Displays with their players. Deleted ones stay for what they played.';
COMMENT ON COLUMN devices.hours IS 'When it is on, in its time zone: [{"weekday": 1 to 7, "open": minute, "close": minute}].';
COMMENT ON COLUMN devices.secret_hash IS 'SHA-256 of a secret of 256 bits.';
CREATE INDEX devices_of_organisation_idx ON devices (organisation_id, device_id DESC) WHERE delete_time IS NULL;

CREATE TABLE requests (
    caller_id   text        NOT NULL,
    request_id  text        NOT NULL,
    fingerprint bytea       NOT NULL,
    device_id   text        NOT NULL,
    expire_time timestamptz NOT NULL,
    CONSTRAINT requests_pkey PRIMARY KEY (caller_id, request_id),
    CONSTRAINT requests_fingerprint_length CHECK (octet_length(fingerprint) = 32)
);
COMMENT ON TABLE requests IS 'Requests of the last day that made a device, so that a repeat gets the first answer.';
COMMENT ON COLUMN requests.fingerprint IS 'SHA-256 of the request body.';
CREATE INDEX requests_expire_time_idx ON requests (expire_time);

CREATE TABLE claim_codes (
    device_id   text        NOT NULL,
    code_hash   bytea       NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    CONSTRAINT claim_codes_pkey PRIMARY KEY (device_id),
    CONSTRAINT claim_codes_code_hash_unique UNIQUE (code_hash),
    CONSTRAINT claim_codes_device_id_fkey FOREIGN KEY (device_id) REFERENCES devices (device_id),
    CONSTRAINT claim_codes_code_hash_length CHECK (octet_length(code_hash) = 32)
);
COMMENT ON TABLE claim_codes IS 'The one code of each device that a player can trade for its credentials.';
COMMENT ON COLUMN claim_codes.code_hash IS 'SHA-256 of the code.';
CREATE INDEX claim_codes_expire_time_idx ON claim_codes (expire_time);

CREATE TABLE claim_failures (
    key       text        NOT NULL,
    free_time timestamptz NOT NULL,
    CONSTRAINT claim_failures_pkey PRIMARY KEY (key)
);
COMMENT ON TABLE claim_failures IS 'What wrong claim codes have used up, by address and for all together.';
COMMENT ON COLUMN claim_failures.free_time IS 'When the budget is whole again.';
CREATE INDEX claim_failures_free_time_idx ON claim_failures (free_time);

CREATE TABLE instances (
    instance_id text        NOT NULL,
    seen_time   timestamptz NOT NULL,
    CONSTRAINT instances_pkey PRIMARY KEY (instance_id)
);
COMMENT ON TABLE instances IS 'Running instances of the service: the players of one that is not seen any more are not connected.';

CREATE TABLE presence (
    device_id       text        NOT NULL,
    instance_id     text        NOT NULL,
    connection_id   text        NOT NULL,
    connect_time    timestamptz NOT NULL,
    disconnect_time timestamptz,
    CONSTRAINT presence_pkey PRIMARY KEY (device_id)
);
COMMENT ON TABLE presence IS 'The last connection of each player.';
CREATE INDEX presence_of_instance_idx ON presence (instance_id) WHERE disconnect_time IS NULL;

CREATE TABLE playlists (
    device_id   text        NOT NULL,
    version     bigint      NOT NULL,
    items       jsonb       NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT playlists_pkey PRIMARY KEY (device_id),
    CONSTRAINT playlists_device_id_fkey FOREIGN KEY (device_id) REFERENCES devices (device_id),
    CONSTRAINT playlists_version_positive CHECK (version > 0)
);
COMMENT ON TABLE playlists IS 'What each device plays.';

CREATE TABLE device_creatives (
    device_id   text        NOT NULL,
    creative_id text        NOT NULL,
    duration_ms integer     NOT NULL,
    CONSTRAINT device_creatives_pkey PRIMARY KEY (device_id, creative_id),
    CONSTRAINT device_creatives_device_id_fkey FOREIGN KEY (device_id) REFERENCES devices (device_id)
);
COMMENT ON TABLE device_creatives IS 'What each device has ever been given to play: plays of anything else are impossible.';
COMMENT ON COLUMN device_creatives.duration_ms IS 'Its shortest full length in any playlist.';

CREATE TABLE plays (
    device_id    text        NOT NULL,
    play_id      text        NOT NULL,
    creative_id  text        NOT NULL,
    start_time   timestamptz NOT NULL,
    duration_ms  integer     NOT NULL,
    counted      boolean     NOT NULL,
    receive_time timestamptz NOT NULL,
    CONSTRAINT plays_pkey PRIMARY KEY (device_id, play_id, start_time)
) PARTITION BY RANGE (start_time);
COMMENT ON TABLE plays IS 'Proofs of play, a partition a day (UTC). start_time is the time in play_id, so that a repeat meets its first.';
COMMENT ON COLUMN plays.counted IS 'Whether it ran to within 500 ms of its full length.';

CREATE TABLE plays_hourly (
    device_id   text        NOT NULL,
    creative_id text        NOT NULL,
    hour_time   timestamptz NOT NULL,
    plays       bigint      NOT NULL,
    counted     bigint      NOT NULL,
    duration_ms bigint      NOT NULL,
    CONSTRAINT plays_hourly_pkey PRIMARY KEY (device_id, hour_time, creative_id)
);
COMMENT ON TABLE plays_hourly IS 'Sums of plays, written in the same transaction as they are.';

CREATE TABLE rejected_plays (
    device_id    text        NOT NULL,
    play_id      text        NOT NULL,
    reason       text        NOT NULL,
    play         text        NOT NULL,
    receive_time timestamptz NOT NULL,
    CONSTRAINT rejected_plays_pkey PRIMARY KEY (device_id, play_id, reason)
);
COMMENT ON TABLE rejected_plays IS 'Plays that cannot have been, as they were sent, and why.';
COMMENT ON COLUMN rejected_plays.play_id IS 'As it was sent; of a batch that could not be read the SHA-256.';
CREATE INDEX rejected_plays_receive_time_idx ON rejected_plays (receive_time);

-- +goose StatementBegin
CREATE FUNCTION add_play_partitions(first_day date, last_day date) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    day  date := first_day;
    made integer := 0;
BEGIN
    -- Instances take turns.
    PERFORM pg_advisory_xact_lock(x'6d6172710101'::bigint);
    WHILE day <= last_day LOOP
        IF to_regclass(format('plays_%s', to_char(day, 'YYYYMMDD'))) IS NULL THEN
            EXECUTE format('CREATE TABLE %I PARTITION OF plays FOR VALUES FROM (%L) TO (%L)',
                'plays_' || to_char(day, 'YYYYMMDD'), day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
            made := made + 1;
        END IF;
        day := day + 1;
    END LOOP;
    RETURN made;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION add_play_partitions IS 'Makes the partitions of plays for these days that are not there yet, and says how many.';

-- +goose Down

DROP FUNCTION add_play_partitions;
DROP TABLE rejected_plays;
DROP TABLE plays_hourly;
DROP TABLE plays;
DROP TABLE device_creatives;
DROP TABLE playlists;
DROP TABLE presence;
DROP TABLE instances;
DROP TABLE claim_failures;
DROP TABLE claim_codes;
DROP TABLE requests;
DROP TABLE devices;
