-- +goose Up

CREATE TABLE displays (
    device_id       text             NOT NULL,
    display_number  bigint           NOT NULL GENERATED ALWAYS AS IDENTITY,
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
    playable        boolean          NOT NULL,
    update_time       timestamptz      NOT NULL,
    CONSTRAINT displays_pkey PRIMARY KEY (device_id),
    CONSTRAINT displays_number_unique UNIQUE (display_number),
    CONSTRAINT displays_loop_of_slots CHECK (slot_seconds > 0 AND loop_seconds > 0 AND loop_seconds % slot_seconds = 0),
    CONSTRAINT displays_price_not_negative CHECK (price_minor >= 0)
);
COMMENT ON TABLE displays IS 'What air time is sold on: what the device service told of its devices. Deleted ones stay for what was sold on them.';
COMMENT ON COLUMN displays.display_number IS 'Short for device_id, in reservations.place.';
COMMENT ON COLUMN displays.hours IS 'When it is on, in its time zone: [{"weekday": 1 to 7, "open": minute, "close": minute}].';
COMMENT ON COLUMN displays.playable IS 'Whether a player has credentials for it: only then is it sold.';
COMMENT ON COLUMN displays.update_time IS 'When an event told of it last, or when the list that did was read: a list that was read before changes nothing.';
CREATE INDEX displays_of_organisation_idx ON displays (organisation_id, device_id);

CREATE TABLE requests (
    caller_id   text        NOT NULL,
    request_id  text        NOT NULL,
    fingerprint bytea       NOT NULL,
    made_id     text        NOT NULL,
    expire_time timestamptz NOT NULL,
    CONSTRAINT requests_pkey PRIMARY KEY (caller_id, request_id),
    CONSTRAINT requests_fingerprint_length CHECK (octet_length(fingerprint) = 32)
);
COMMENT ON TABLE requests IS 'Writes of the last day, so that a repeat gets the first answer.';
COMMENT ON COLUMN requests.fingerprint IS 'SHA-256 of the method and the request body.';
COMMENT ON COLUMN requests.made_id IS 'What it made or changed: an order, a creative, or an entry of the ledger.';
CREATE INDEX requests_expire_time_idx ON requests (expire_time);

CREATE TABLE orders (
    order_id         text        NOT NULL,
    organisation_id  text        NOT NULL,
    title            text        NOT NULL,
    state            text        NOT NULL,
    price_minor      bigint      NOT NULL,
    refunded_minor   bigint      NOT NULL,
    currency         text        NOT NULL,
    line_count       integer     NOT NULL,
    create_time      timestamptz NOT NULL,
    hold_expire_time timestamptz NOT NULL,
    book_time        timestamptz,
    cancel_time      timestamptz,
    end_time         timestamptz NOT NULL,
    CONSTRAINT orders_pkey PRIMARY KEY (order_id),
    CONSTRAINT orders_id_form CHECK (order_id LIKE 'ord\_%' AND char_length(order_id) = 30),
    CONSTRAINT orders_state_known CHECK (state IN ('HELD', 'EXPIRED', 'BOOKED', 'CANCELLED', 'COMPLETED')),
    CONSTRAINT orders_refunded_of_price CHECK (refunded_minor BETWEEN 0 AND price_minor),
    CONSTRAINT orders_booked_has_time CHECK (state NOT IN ('BOOKED', 'COMPLETED') OR book_time IS NOT NULL),
    CONSTRAINT orders_cancelled_has_time CHECK ((state = 'CANCELLED') = (cancel_time IS NOT NULL))
);
COMMENT ON TABLE orders IS 'Air time that belongs together.';
COMMENT ON COLUMN orders.state IS 'A held order whose hold has expired is expired, also while this says HELD.';
COMMENT ON COLUMN orders.end_time IS 'When the last of its lines ends.';
CREATE INDEX orders_of_organisation_idx ON orders (organisation_id, order_id DESC);
CREATE INDEX orders_held_idx ON orders (hold_expire_time) WHERE state = 'HELD';
CREATE INDEX orders_held_of_organisation_idx ON orders (organisation_id, hold_expire_time) WHERE state = 'HELD';
CREATE INDEX orders_booked_idx ON orders (end_time) WHERE state = 'BOOKED';

CREATE TABLE lines (
    line_id           text           NOT NULL,
    order_id          text           NOT NULL,
    line_number       integer        NOT NULL,
    device_id         text           NOT NULL,
    owner_id          text           NOT NULL,
    start_date        date           NOT NULL,
    end_date          date           NOT NULL,
    dayparts          jsonb          NOT NULL,
    slots             integer[]      NOT NULL,
    loop_seconds      integer        NOT NULL,
    slot_seconds      integer        NOT NULL,
    time_zone         text           NOT NULL,
    start_time        timestamptz    NOT NULL,
    end_time          timestamptz    NOT NULL,
    times             tstzmultirange NOT NULL,
    plays             bigint         NOT NULL,
    price_minor       bigint         NOT NULL,
    refunded_minor    bigint         NOT NULL,
    earned_minor      bigint         NOT NULL,
    booked            boolean        NOT NULL,
    creative_id       text,
    shown_creative_id text,
    shown_version     integer        NOT NULL,
    showing_number    integer        NOT NULL,
    taken_down_number integer        NOT NULL DEFAULT 0,
    revision          bigint         NOT NULL,
    CONSTRAINT lines_pkey PRIMARY KEY (line_id),
    CONSTRAINT lines_order_id_fkey FOREIGN KEY (order_id) REFERENCES orders (order_id),
    CONSTRAINT lines_device_id_fkey FOREIGN KEY (device_id) REFERENCES displays (device_id),
    CONSTRAINT lines_number_unique UNIQUE (order_id, line_number),
    CONSTRAINT lines_id_form CHECK (line_id LIKE 'lin\_%' AND char_length(line_id) = 30),
    CONSTRAINT lines_dates_in_order CHECK (start_date <= end_date),
    CONSTRAINT lines_times_in_order CHECK (start_time < end_time),
    CONSTRAINT lines_slots_some CHECK (cardinality(slots) > 0),
    CONSTRAINT lines_money_of_price CHECK (refunded_minor >= 0 AND earned_minor >= 0 AND refunded_minor + earned_minor <= price_minor)
);
COMMENT ON TABLE lines IS 'Air time on one display: these slots of each loop, at these times.';
COMMENT ON COLUMN lines.owner_id IS 'The organisation whose display it is.';
COMMENT ON COLUMN lines.times IS 'When it is on. A cancelled line keeps what is past.';
COMMENT ON COLUMN lines.booked IS 'Whether it was paid for; it stays so when the order is cancelled or completed.';
COMMENT ON COLUMN lines.creative_id IS 'What it is to show.';
COMMENT ON COLUMN lines.shown_creative_id IS 'What its display was told last: null is nothing.';
COMMENT ON COLUMN lines.shown_version IS 'Which version of that creative; 0 is none.';
COMMENT ON COLUMN lines.showing_number IS 'How often what is shown has changed: line_id, "-" and this name it in plays.';
COMMENT ON COLUMN lines.taken_down_number IS 'Showings up to this number are taken down.';
COMMENT ON COLUMN lines.revision IS 'Grows with each change that displays are told of.';
CREATE INDEX lines_booked_of_owner_idx ON lines (owner_id, line_id DESC) WHERE booked;
CREATE INDEX lines_booked_of_device_idx ON lines (device_id, line_id) WHERE booked;
CREATE INDEX lines_of_creative_idx ON lines (creative_id, line_id) WHERE creative_id IS NOT NULL;

CREATE TABLE reservations (
    line_id          text           NOT NULL,
    place            int8range      NOT NULL,
    times            tstzmultirange NOT NULL,
    hold_expire_time timestamptz,
    CONSTRAINT reservations_pkey PRIMARY KEY (line_id, place),
    CONSTRAINT reservations_line_id_fkey FOREIGN KEY (line_id) REFERENCES lines (line_id),
    CONSTRAINT reservations_times_some CHECK (NOT isempty(times)),
    -- No slot is sold twice.
    CONSTRAINT reservations_no_double_sale EXCLUDE USING gist (place WITH &&, times WITH &&)
);
COMMENT ON TABLE reservations IS 'Which slots are held or booked, and when. Who makes one deletes expired holds of the same slots first.';
COMMENT ON COLUMN reservations.place IS 'One slot of one display: display_number * 4096 + slot, as a range of this one number.';
COMMENT ON COLUMN reservations.hold_expire_time IS 'When it is in nobody''s way any more; null once it is booked.';
CREATE INDEX reservations_expire_idx ON reservations (hold_expire_time) WHERE hold_expire_time IS NOT NULL;

CREATE TABLE creatives (
    creative_id     text        NOT NULL,
    organisation_id text        NOT NULL,
    title           text        NOT NULL,
    version         integer     NOT NULL,
    create_time     timestamptz NOT NULL,
    take_down_time  timestamptz,
    CONSTRAINT creatives_pkey PRIMARY KEY (creative_id),
    CONSTRAINT creatives_id_form CHECK (creative_id LIKE 'crv\_%' AND char_length(creative_id) = 30),
    CONSTRAINT creatives_title_length CHECK (char_length(title) BETWEEN 1 AND 100)
);
COMMENT ON TABLE creatives IS 'What is shown.';
COMMENT ON COLUMN creatives.version IS 'The newest.';
CREATE INDEX creatives_of_organisation_idx ON creatives (organisation_id, creative_id DESC);
ALTER TABLE lines ADD CONSTRAINT lines_creative_id_fkey FOREIGN KEY (creative_id) REFERENCES creatives (creative_id);

CREATE TABLE creative_versions (
    creative_id  text        NOT NULL,
    version      integer     NOT NULL,
    text_content jsonb,
    sha256       text        NOT NULL,
    media_type   text        NOT NULL,
    width_px     integer     NOT NULL,
    height_px    integer     NOT NULL,
    duration_ms  integer     NOT NULL,
    thumbnail    text        NOT NULL,
    create_time  timestamptz NOT NULL,
    CONSTRAINT creative_versions_pkey PRIMARY KEY (creative_id, version),
    CONSTRAINT creative_versions_creative_id_fkey FOREIGN KEY (creative_id) REFERENCES creatives (creative_id),
    CONSTRAINT creative_versions_version_positive CHECK (version > 0),
    CONSTRAINT creative_versions_sha256_form CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    CONSTRAINT creative_versions_thumbnail_form CHECK (thumbnail ~ '^([0-9a-f]{64})?$')
);
COMMENT ON TABLE creative_versions IS 'Editions of creatives, which never change.';
COMMENT ON COLUMN creative_versions.text_content IS 'Of a text: what it says and how it looks; sha256 is then that of the document that players get.';
COMMENT ON COLUMN creative_versions.thumbnail IS 'SHA-256 of a small image of it, or empty.';

CREATE TABLE approvals (
    creative_id text        NOT NULL,
    version     integer     NOT NULL,
    owner_id    text        NOT NULL,
    state       text        NOT NULL,
    reason      text        NOT NULL,
    create_time timestamptz NOT NULL,
    decide_time timestamptz,
    CONSTRAINT approvals_pkey PRIMARY KEY (creative_id, version, owner_id),
    CONSTRAINT approvals_version_fkey FOREIGN KEY (creative_id, version) REFERENCES creative_versions (creative_id, version),
    CONSTRAINT approvals_state_known CHECK (state IN ('PENDING', 'APPROVED', 'REJECTED')),
    CONSTRAINT approvals_reason_of_rejected CHECK ((state = 'REJECTED') = (reason <> '')),
    CONSTRAINT approvals_decided_has_time CHECK ((state = 'PENDING') = (decide_time IS NULL))
);
COMMENT ON TABLE approvals IS 'What the owners of displays say to versions of creatives that are booked on them.';
CREATE INDEX approvals_of_owner_idx ON approvals (owner_id, create_time, creative_id, version);
CREATE INDEX approvals_pending_idx ON approvals (owner_id, create_time, creative_id, version) WHERE state = 'PENDING';

CREATE TABLE ledger_accounts (
    account_id      text   NOT NULL,
    kind            text   NOT NULL,
    organisation_id text   NOT NULL,
    currency        text   NOT NULL,
    balance_minor   bigint,
    CONSTRAINT ledger_accounts_pkey PRIMARY KEY (account_id),
    CONSTRAINT ledger_accounts_currency_unique UNIQUE (account_id, currency),
    CONSTRAINT ledger_accounts_kind_known CHECK (kind IN ('EXTERNAL', 'WALLET', 'ORDER', 'PLATFORM')),
    CONSTRAINT ledger_accounts_currency_form CHECK (currency ~ '^[A-Z]{3}$'),
    -- Nobody spends what is not there. What comes from outside, and the platform's
    -- share, have no balance of their own: all would wait for that row.
    CONSTRAINT ledger_accounts_balance_not_negative CHECK ((kind IN ('EXTERNAL', 'PLATFORM')) = (balance_minor IS NULL) AND balance_minor >= 0)
);
COMMENT ON TABLE ledger_accounts IS 'Where money is: outside, in the wallets of organisations, kept for booked orders, and the platform''s.';
COMMENT ON COLUMN ledger_accounts.account_id IS 'external:EUR, wallet:<organisation_id>:EUR, order:<order_id> or platform:EUR.';
COMMENT ON COLUMN ledger_accounts.organisation_id IS 'Of a wallet; else empty.';
CREATE INDEX ledger_accounts_of_organisation_idx ON ledger_accounts (organisation_id, currency) WHERE organisation_id <> '';

CREATE TABLE ledger_entries (
    entry_id     text        NOT NULL,
    from_account text        NOT NULL,
    to_account   text        NOT NULL,
    currency     text        NOT NULL,
    amount_minor bigint      NOT NULL,
    kind         text        NOT NULL,
    order_id     text        NOT NULL,
    line_id      text        NOT NULL,
    reference    text        NOT NULL,
    create_time  timestamptz NOT NULL,
    CONSTRAINT ledger_entries_pkey PRIMARY KEY (entry_id),
    -- Each entry takes from one account what it gives to another, in one currency:
    -- the sum of all is zero whatever happens.
    CONSTRAINT ledger_entries_from_fkey FOREIGN KEY (from_account, currency) REFERENCES ledger_accounts (account_id, currency),
    CONSTRAINT ledger_entries_to_fkey FOREIGN KEY (to_account, currency) REFERENCES ledger_accounts (account_id, currency),
    CONSTRAINT ledger_entries_two_accounts CHECK (from_account <> to_account),
    CONSTRAINT ledger_entries_amount_positive CHECK (amount_minor > 0),
    CONSTRAINT ledger_entries_kind_known CHECK (kind IN ('TOP_UP', 'BOOKING', 'REFUND', 'EARNING', 'FEE'))
);
COMMENT ON TABLE ledger_entries IS 'Movements of money, which never change.';
COMMENT ON COLUMN ledger_entries.reference IS 'Of a top-up: what the payment provider calls it.';
CREATE INDEX ledger_entries_from_idx ON ledger_entries (from_account, entry_id DESC);
CREATE INDEX ledger_entries_to_idx ON ledger_entries (to_account, entry_id DESC);
-- No order is paid twice.
CREATE UNIQUE INDEX ledger_entries_paid_once_idx ON ledger_entries (order_id) WHERE kind = 'BOOKING';
-- Nothing that was taken once is put into a wallet twice.
CREATE UNIQUE INDEX ledger_entries_top_up_once_idx ON ledger_entries (reference) WHERE kind = 'TOP_UP';

CREATE TABLE test_charges (
    charge_key      text   NOT NULL,
    charge_number   bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    organisation_id text   NOT NULL,
    amount_minor    bigint NOT NULL,
    currency        text   NOT NULL,
    payment_method  text   NOT NULL,
    CONSTRAINT test_charges_pkey PRIMARY KEY (charge_key)
);
COMMENT ON TABLE test_charges IS 'What the test payment provider took. It stands for the records of a real one: the ledger does not refer to it.';

-- What platform/events needs.
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
DROP TABLE test_charges;
DROP TABLE ledger_entries;
DROP TABLE ledger_accounts;
DROP TABLE approvals;
DROP TABLE creative_versions;
DROP TABLE reservations;
DROP TABLE lines;
DROP TABLE creatives;
DROP TABLE orders;
DROP TABLE requests;
DROP TABLE displays;
