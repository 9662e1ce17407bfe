-- +goose Up

CREATE TABLE booked_lines (
    device_id  text        NOT NULL,
    line_id    text        NOT NULL,
    revision   bigint      NOT NULL,
    first_date date        NOT NULL,
    last_date  date        NOT NULL,
    dayparts   jsonb       NOT NULL,
    slots      integer[]   NOT NULL,
    start_time timestamptz NOT NULL,
    end_time   timestamptz NOT NULL,
    showing    jsonb,
    removed    boolean     NOT NULL,
    taken_down text[]      NOT NULL,
    CONSTRAINT booked_lines_pkey PRIMARY KEY (device_id, line_id),
    CONSTRAINT booked_lines_device_id_fkey FOREIGN KEY (device_id) REFERENCES devices (device_id),
    CONSTRAINT booked_lines_revision_positive CHECK (revision > 0),
    CONSTRAINT booked_lines_flight_forward CHECK (first_date <= last_date),
    CONSTRAINT booked_lines_time_forward CHECK (start_time <= end_time)
);
COMMENT ON TABLE booked_lines IS 'Booked air time of each device, as the service that sells it told.';
COMMENT ON COLUMN booked_lines.revision IS 'Grows with each change: what is told late is known by it.';
COMMENT ON COLUMN booked_lines.dayparts IS 'When in the flight, in the time zone of the device: [{"weekday": 1 to 7, "open": minute, "close": minute}]; all of it without any.';
COMMENT ON COLUMN booked_lines.slots IS 'Positions of the loop, from 0.';
COMMENT ON COLUMN booked_lines.showing IS 'What is shown, as an item of a playlist; without it the slots are the default playlist''s.';
COMMENT ON COLUMN booked_lines.removed IS 'It is not booked any more, and stays so that what is told late does not bring it back.';
COMMENT ON COLUMN booked_lines.taken_down IS 'Showings that the player was told to show no more.';
CREATE INDEX booked_lines_end_time_idx ON booked_lines (end_time);

-- The plays of a line are those of its showings, whose ids begin with its own.
CREATE INDEX plays_hourly_of_creative_idx ON plays_hourly (device_id, creative_id COLLATE "C", hour_time);

COMMENT ON TABLE playlists IS 'What each device plays while nothing is booked, and which version that is with what is booked.';

-- +goose Down

COMMENT ON TABLE playlists IS 'What each device plays.';
DROP INDEX plays_hourly_of_creative_idx;
DROP TABLE booked_lines;
