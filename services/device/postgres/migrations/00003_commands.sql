-- +goose Up

CREATE TABLE device_groups (
    group_id        text        NOT NULL,
    organisation_id text        NOT NULL,
    name            text        NOT NULL,
    create_time     timestamptz NOT NULL,
    update_time     timestamptz NOT NULL,
    CONSTRAINT device_groups_pkey PRIMARY KEY (group_id),
    CONSTRAINT device_groups_id_form CHECK (group_id LIKE 'grp\_%' AND char_length(group_id) = 30),
    CONSTRAINT device_groups_name_length CHECK (char_length(name) BETWEEN 1 AND 100)
);
COMMENT ON TABLE device_groups IS 'Named sets of the devices of organisations.';
CREATE INDEX device_groups_of_organisation_idx ON device_groups (organisation_id, group_id DESC);

CREATE TABLE device_group_members (
    group_id  text NOT NULL,
    device_id text NOT NULL,
    CONSTRAINT device_group_members_pkey PRIMARY KEY (group_id, device_id),
    CONSTRAINT device_group_members_group_id_fkey FOREIGN KEY (group_id) REFERENCES device_groups (group_id) ON DELETE CASCADE,
    CONSTRAINT device_group_members_device_id_fkey FOREIGN KEY (device_id) REFERENCES devices (device_id)
);
COMMENT ON TABLE device_group_members IS 'Which devices are in which groups; deleted ones are in none.';
CREATE INDEX device_group_members_device_idx ON device_group_members (device_id);

CREATE TABLE device_commands (
    command_id       text        NOT NULL,
    device_id        text        NOT NULL,
    group_id         text        NOT NULL,
    group_command_id text        NOT NULL,
    kind             text        NOT NULL,
    duration_ms      integer     NOT NULL,
    creative_id      text        NOT NULL,
    playlist_version bigint      NOT NULL,
    create_time      timestamptz NOT NULL,
    expire_time      timestamptz NOT NULL,
    send_time        timestamptz,
    reply_time       timestamptz,
    result           text        NOT NULL,
    detail           text        NOT NULL,
    image            bytea,
    CONSTRAINT device_commands_pkey PRIMARY KEY (command_id),
    CONSTRAINT device_commands_device_id_fkey FOREIGN KEY (device_id) REFERENCES devices (device_id),
    CONSTRAINT device_commands_id_form CHECK (command_id LIKE 'cmd\_%' AND char_length(command_id) = 30),
    CONSTRAINT device_commands_kind_known CHECK (kind IN ('IDENTIFY', 'REFRESH', 'TAKEDOWN', 'SCREENSHOT')),
    CONSTRAINT device_commands_result_known CHECK (result IN ('', 'DONE', 'DECLINED', 'FAILED')),
    CONSTRAINT device_commands_takedown_of_creative CHECK ((kind = 'TAKEDOWN') = (creative_id <> '')),
    CONSTRAINT device_commands_detail_length CHECK (octet_length(detail) <= 500),
    CONSTRAINT device_commands_image_size CHECK (octet_length(image) <= 45000)
);
COMMENT ON TABLE device_commands IS 'What players were told to do, and what they replied.';
COMMENT ON COLUMN device_commands.group_id IS 'The group that it was sent to, which may be gone; empty for a command to one device.';
COMMENT ON COLUMN device_commands.group_command_id IS 'What all commands have that were sent to a group at once; empty for a command to one device.';
COMMENT ON COLUMN device_commands.playlist_version IS 'The newest when a takedown was sent: later ones say themselves what is shown.';
COMMENT ON COLUMN device_commands.result IS 'What became of it; empty until it is known, and for good when it expires before.';
COMMENT ON COLUMN device_commands.image IS 'A screenshot, PNG or JPEG.';
CREATE INDEX device_commands_of_device_idx ON device_commands (device_id, command_id DESC);
CREATE INDEX device_commands_open_idx ON device_commands (device_id, expire_time) WHERE result = '';
CREATE INDEX device_commands_of_group_idx ON device_commands (group_command_id) WHERE group_command_id <> '';
CREATE INDEX device_commands_expire_time_idx ON device_commands (expire_time);

COMMENT ON TABLE requests IS 'Requests of the last day that made something, so that a repeat gets the first answer.';
COMMENT ON COLUMN requests.device_id IS 'What it made: a device, a group, a command, or a command to a group.';

-- +goose Down

COMMENT ON COLUMN requests.device_id IS NULL;
COMMENT ON TABLE requests IS 'Requests of the last day that made a device, so that a repeat gets the first answer.';
DROP TABLE device_commands;
DROP TABLE device_group_members;
DROP TABLE device_groups;
