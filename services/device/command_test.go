package device_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/postgrestest"
)

// operator is a service whose clock a test sets, and the planes of its instances.
type operator struct {
	*device.Service
	clock  *clock
	db     *database.Database
	planes []*device.Plane
}

func newOperator(t *testing.T, server *pgtest.Server, instances int) *operator {
	t.Helper()
	store, db := postgrestest.New(t, server)
	o := &operator{clock: &clock{at: time.Now()}, db: db}
	o.Service = device.New(store, device.DefaultThrottle(), o.clock.now, rand.Reader)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for n := range instances {
		p := device.NewPlane(store, fmt.Sprint("instance-", n), o.clock.now, hclog.NewNullLogger())
		o.planes = append(o.planes, p)
		running.Go(func() { _ = p.Run(ctx) })
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	return o
}

// enrol makes a device and claims it.
func (o *operator) enrol(t *testing.T, name string) device.Credentials {
	t.Helper()
	made, err := o.Create(t.Context(), "acc_1", "request-"+name, organisation, settings())
	require.NoError(t, err)
	code, _, err := o.CreateClaimCode(t.Context(), organisation, made.ID)
	require.NoError(t, err)
	c, err := o.Claim(t.Context(), code, "")
	require.NoError(t, err)
	return c
}

// connect lets a player in that listens to commands.
func (o *operator) connect(t *testing.T, plane int, c device.Credentials, connection string) *silent {
	t.Helper()
	pass, err := o.planes[plane].Admit(t.Context(), c.DeviceID, c.Secret)
	require.NoError(t, err)
	s := &silent{id: connection, device: c.DeviceID}
	o.planes[plane].Connected(t.Context(), pass, s)
	o.planes[plane].Listens(t.Context(), s, device.ChannelCommands)
	return s
}

func (o *operator) send(t *testing.T, requestID, deviceID string, i device.Instruction) device.Command {
	t.Helper()
	c, err := o.SendCommand(t.Context(), "acc_1", requestID, organisation, deviceID, i)
	require.NoError(t, err)
	return c
}

func (o *operator) find(t *testing.T, c device.Command) device.Command {
	t.Helper()
	found, err := o.FindCommand(t.Context(), organisation, c.DeviceID, c.ID)
	require.NoError(t, err)
	return found
}

// got waits for so many commands and returns their ids.
func (s *silent) got(t *testing.T, n int) (ids []string) {
	t.Helper()
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.sent) >= n
	}, 10*time.Second, 5*time.Millisecond, "%d commands do not arrive", n)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range s.sent {
		var c struct {
			ID string `json:"command_id"`
		}
		require.NoError(t, json.Unmarshal([]byte(text), &c))
		ids = append(ids, c.ID)
	}
	return ids
}

func done(c string) []byte { return fmt.Appendf(nil, `{"command_id":%q,"result":"DONE"}`, c) }

func TestCommandExpires(t *testing.T) {
	o := newOperator(t, &pg, 1)
	c := o.enrol(t, "1")
	short := o.send(t, "command-1", c.DeviceID, device.Instruction{Kind: device.Screenshot, Lifetime: 10 * time.Second})
	usual := o.send(t, "command-2", c.DeviceID, device.Instruction{Kind: device.Refresh})
	o.clock.forward(time.Millisecond)
	down := o.send(t, "command-3", c.DeviceID, device.Instruction{Kind: device.Takedown, CreativeID: "a"})
	o.clock.forward(10 * time.Second)
	require.Equal(t, device.Expired, o.find(t, short).State)
	session := o.connect(t, 0, c, "first")
	require.Equal(t, []string{usual.ID, down.ID}, session.got(t, 2), "what has expired is not sent, and the rest is in order")
	require.NoError(t, o.planes[0].Received(t.Context(), session, device.ChannelCommands, done(short.ID)))
	require.Equal(t, device.Expired, o.find(t, short).State, "a reply that is late counts")
	o.clock.forward(5*time.Minute - 10*time.Second - time.Millisecond)
	require.Equal(t, device.Expired, o.find(t, usual).State)
	require.NoError(t, o.planes[0].Received(t.Context(), session, device.ChannelCommands, done(down.ID)))
	require.Equal(t, device.Done, o.find(t, down).State)
	o.clock.forward(48 * time.Hour)
	require.Equal(t, device.Done, o.find(t, down).State)
	require.Equal(t, device.EndReason(""), session.ended())

	again := o.send(t, "command-4", c.DeviceID, device.Instruction{Kind: device.Identify})
	require.Equal(t, again.ID, session.got(t, 3)[2])
}

// TestCommandSweep: commands are kept for a week after they expire.
func TestCommandSweep(t *testing.T) {
	store, _ := postgrestest.New(t, &pg)
	now := &clock{at: time.Now()}
	s := device.New(store, device.DefaultThrottle(), now.now, rand.Reader)
	made, err := s.Create(t.Context(), "acc_1", "request-1", organisation, settings())
	require.NoError(t, err)
	old, err := s.SendCommand(t.Context(), "acc_1", "command-1", organisation, made.ID, device.Instruction{Kind: device.Refresh})
	require.NoError(t, err)
	now.forward(time.Minute)
	kept, err := s.SendCommand(t.Context(), "acc_1", "command-2", organisation, made.ID, device.Instruction{Kind: device.Refresh})
	require.NoError(t, err)
	_, err = store.Sweep(t.Context(), old.ExpireTime.Add(device.CommandsKept))
	require.NoError(t, err)
	_, err = s.FindCommand(t.Context(), organisation, made.ID, old.ID)
	require.NoError(t, err)
	_, err = store.Sweep(t.Context(), old.ExpireTime.Add(device.CommandsKept+time.Second))
	require.NoError(t, err)
	_, err = s.FindCommand(t.Context(), organisation, made.ID, old.ID)
	require.ErrorIs(t, err, device.ErrCommandNotFound)
	_, err = s.FindCommand(t.Context(), organisation, made.ID, kept.ID)
	require.NoError(t, err)
}

// TestCommandMissed: what was sent while nobody listened is found afterwards, and
// nothing is sent twice on a connection.
func TestCommandMissed(t *testing.T) {
	o := newOperator(t, &pg, 1)
	c := o.enrol(t, "1")
	session := o.connect(t, 0, c, "first")
	first := o.send(t, "command-1", c.DeviceID, device.Instruction{Kind: device.Refresh})
	require.Equal(t, []string{first.ID}, session.got(t, 1))
	_, err := o.db.Pool().Exec(t.Context(), `INSERT INTO device_commands (command_id, device_id, group_id, group_command_id, kind, duration_ms,
		creative_id, playlist_version, create_time, expire_time, result, detail)
		VALUES ('cmd_01ARZ3NDEKTSV4RRFFQ69G5FAV', $1, '', '', 'REFRESH', 0, '', 0, now(), now() + interval '1 hour', '', '')`, c.DeviceID)
	require.NoError(t, err)
	_, err = o.db.Pool().Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN device' AND pid <> pg_backend_pid()")
	require.NoError(t, err)
	require.Equal(t, []string{first.ID, "cmd_01ARZ3NDEKTSV4RRFFQ69G5FAV"}, session.got(t, 2))
	require.Eventually(t, func() bool { return o.find(t, first).State == device.Sent }, 10*time.Second, 5*time.Millisecond)
}

// deaf is a session that takes nothing.
type deaf struct{ silent }

func (*deaf) Send(string, []byte) error {
	return errors.New("the player has not acknowledged what it was sent before")
}

// TestCommandNotTaken: a player that takes nothing is ended, and gets its commands
// on the next connection; others are not disturbed.
func TestCommandNotTaken(t *testing.T) {
	o := newOperator(t, &pg, 1)
	slow, other := o.enrol(t, "1"), o.enrol(t, "2")
	pass, err := o.planes[0].Admit(t.Context(), slow.DeviceID, slow.Secret)
	require.NoError(t, err)
	stuck := &deaf{silent{id: "stuck", device: slow.DeviceID}}
	o.planes[0].Connected(t.Context(), pass, stuck)
	o.planes[0].Listens(t.Context(), stuck, device.ChannelCommands)
	quick := o.connect(t, 0, other, "quick")
	group, err := o.CreateGroup(t.Context(), "acc_1", "a-group-1", organisation, "both")
	require.NoError(t, err)
	_, err = o.AddGroupDevices(t.Context(), organisation, group.ID, []string{slow.DeviceID, other.DeviceID})
	require.NoError(t, err)
	sent, err := o.SendGroupCommand(t.Context(), "acc_1", "command-1", organisation, group.ID, device.Instruction{Kind: device.Takedown, CreativeID: "a"})
	require.NoError(t, err)
	quick.got(t, 1)
	require.Eventually(t, func() bool { return stuck.ended() == device.EndBusy }, 10*time.Second, 5*time.Millisecond)
	require.Equal(t, device.EndReason(""), quick.ended())
	require.Eventually(t, func() bool {
		now, err := o.FindGroupCommand(t.Context(), organisation, group.ID, sent.ID)
		return err == nil && now.States[device.Sent] == 1 && now.States[device.Queued] == 1
	}, 10*time.Second, 5*time.Millisecond)
	o.planes[0].Disconnected(t.Context(), stuck)
	o.connect(t, 0, slow, "again").got(t, 1)
}

// TestCommandOnce sends one request at the same time many times over.
func TestCommandOnce(t *testing.T) {
	o := newOperator(t, &pg, 0)
	c := o.enrol(t, "1")
	type outcome struct {
		command device.Command
		err     error
	}
	outcomes := make(chan outcome, 8)
	for range cap(outcomes) {
		go func() {
			command, err := o.SendCommand(t.Context(), "acc_1", "command-1", organisation, c.DeviceID, device.Instruction{Kind: device.Refresh})
			outcomes <- outcome{command, err}
		}()
	}
	ids := make(map[string]bool)
	for range cap(outcomes) {
		got := <-outcomes
		require.NoError(t, got.err)
		ids[got.command.ID] = true
	}
	require.Len(t, ids, 1)
}

func TestGroupBounds(t *testing.T) {
	o := newOperator(t, &pg, 0)
	group, err := o.CreateGroup(t.Context(), "acc_1", "a-group-1", organisation, "full")
	require.NoError(t, err)
	one, two := o.enrol(t, "1"), o.enrol(t, "2")
	_, err = o.db.Pool().Exec(t.Context(), `WITH made AS (
			INSERT INTO devices (device_id, organisation_id, name, latitude, longitude, address, venue_type, width_px, height_px, loop_seconds, slot_seconds,
				price_minor, currency, time_zone, hours, revision, create_time, update_time)
			SELECT 'dev_' || lpad(n::text, 26, '0'), organisation_id, name, latitude, longitude, address, venue_type, width_px, height_px, loop_seconds, slot_seconds,
				price_minor, currency, time_zone, hours, revision, create_time, update_time
			FROM devices, generate_series(1, $2) AS n WHERE device_id = $3
			RETURNING device_id
		) INSERT INTO device_group_members (group_id, device_id) SELECT $1, device_id FROM made`, group.ID, device.MaxGroupDevices-1, one.DeviceID)
	require.NoError(t, err)
	_, err = o.AddGroupDevices(t.Context(), organisation, group.ID, []string{one.DeviceID, two.DeviceID})
	require.ErrorIs(t, err, device.ErrGroupFull)
	full, err := o.AddGroupDevices(t.Context(), organisation, group.ID, []string{one.DeviceID})
	require.NoError(t, err)
	require.Equal(t, device.MaxGroupDevices, full.Devices)
	began := time.Now()
	sent, err := o.SendGroupCommand(t.Context(), "acc_1", "command-1", organisation, group.ID, device.Instruction{Kind: device.Takedown, CreativeID: "a"})
	require.NoError(t, err)
	t.Logf("a command to %d devices was stored in %s", sent.Devices, time.Since(began))
	require.Equal(t, device.MaxGroupDevices, sent.States[device.Queued])

	_, err = o.db.Pool().Exec(t.Context(), `INSERT INTO device_groups (group_id, organisation_id, name, create_time, update_time)
		SELECT 'grp_' || lpad(n::text, 26, '0'), $1, 'x', now(), now() FROM generate_series(1, $2) AS n`, organisation, device.MaxGroups-1)
	require.NoError(t, err)
	_, err = o.CreateGroup(t.Context(), "acc_1", "a-group-2", organisation, "one too many")
	require.ErrorIs(t, err, device.ErrTooManyGroups)
}

// TestTakedownFansOut takes a creative down on 2,000 devices that are connected to
// two instances, and has all of them reply.
func TestTakedownFansOut(t *testing.T) {
	const devices = 2000
	o := newOperator(t, &pg, 2)
	group, err := o.CreateGroup(t.Context(), "acc_1", "a-group-1", organisation, "all")
	require.NoError(t, err)
	one := o.enrol(t, "1")
	_, err = o.db.Pool().Exec(t.Context(), `WITH made AS (
			INSERT INTO devices (device_id, organisation_id, name, latitude, longitude, address, venue_type, width_px, height_px, loop_seconds, slot_seconds,
				price_minor, currency, time_zone, hours, revision, create_time, update_time, claim_time, secret_hash)
			SELECT 'dev_' || lpad(n::text, 26, '0'), organisation_id, name, latitude, longitude, address, venue_type, width_px, height_px, loop_seconds, slot_seconds,
				price_minor, currency, time_zone, hours, revision, create_time, update_time, claim_time, secret_hash
			FROM devices, generate_series(1, $2) AS n WHERE device_id = $3
			RETURNING device_id
		) INSERT INTO device_group_members (group_id, device_id) SELECT $1, device_id FROM made`, group.ID, devices, one.DeviceID)
	require.NoError(t, err)
	var sessions []*silent
	for n := range devices {
		id := fmt.Sprintf("dev_%026d", n+1)
		sessions = append(sessions, o.connect(t, n%2, device.Credentials{DeviceID: id, Secret: one.Secret}, fmt.Sprint(n)))
	}

	began := time.Now()
	sent, err := o.SendGroupCommand(t.Context(), "acc_1", "command-1", organisation, group.ID, device.Instruction{Kind: device.Takedown, CreativeID: "a"})
	require.NoError(t, err)
	stored := time.Since(began)
	for _, s := range sessions {
		s.got(t, 1)
	}
	t.Logf("%d devices: stored after %s, with the last after %s", devices, stored, time.Since(began))
	require.Less(t, time.Since(began), 5*time.Second)

	var replies [][]byte
	for _, s := range sessions {
		replies = append(replies, done(s.got(t, 1)[0]))
	}
	replying := time.Now()
	errs := make(chan error, devices)
	for n, s := range sessions {
		go func() { errs <- o.planes[n%2].Received(context.Background(), s, device.ChannelCommands, replies[n]) }()
	}
	for range devices {
		require.NoError(t, <-errs)
	}
	t.Logf("%d replies at once were stored in %s", devices, time.Since(replying))
	now, err := o.FindGroupCommand(t.Context(), organisation, group.ID, sent.ID)
	require.NoError(t, err)
	require.Equal(t, devices, now.States[device.Done])
	for _, s := range sessions {
		require.Len(t, s.got(t, 1), 1, "something was sent twice")
		require.Equal(t, device.EndReason(""), s.ended())
	}
}

// TestReplyOutage: a reply waits while the database is away, and then counts.
func TestReplyOutage(t *testing.T) {
	own := pgtest.Start(t)
	o := newOperator(t, own, 1)
	c := o.enrol(t, "1")
	session := o.connect(t, 0, c, "first")
	command := o.send(t, "command-1", c.DeviceID, device.Instruction{Kind: device.Refresh})
	session.got(t, 1)
	own.Stop(t)
	replied := make(chan error, 1)
	go func() {
		replied <- o.planes[0].Received(t.Context(), session, device.ChannelCommands, done(command.ID))
	}()
	select {
	case err := <-replied:
		t.Fatalf("acknowledged without a database: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	own.Restart(t)
	require.NoError(t, <-replied)
	require.Equal(t, device.Done, o.find(t, command).State)
}

// FuzzParseReply: whatever a player sends is a reply, of what Postgres can store, or
// none.
func FuzzParseReply(f *testing.F) {
	f.Add([]byte(`{"command_id":"cmd_01ARZ3NDEKTSV4RRFFQ69G5FAV","result":"DONE","detail":"\u0000\ud800","image":"iVBORw0KGgo="}`))
	f.Add([]byte(`{"command_id":"cmd_01ARZ3NDEKTSV4RRFFQ69G5FAV","result":7}`))
	f.Add([]byte("\xff"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, ok := device.ParseReply(text)
		if !ok {
			require.Empty(t, r)
			return
		}
		require.Regexp(t, `^cmd_[0-7][0-9A-HJKMNP-TV-Z]{25}$`, r.CommandID)
		require.Contains(t, []device.CommandState{device.Done, device.Declined, device.Failed}, r.Result)
		require.LessOrEqual(t, len(r.Detail), 500)
		require.True(t, utf8.ValidString(r.Detail) && !strings.Contains(r.Detail, "\x00"), "Postgres does not store %q", r.Detail)
		require.LessOrEqual(t, len(r.Image), device.MaxImage)
		require.True(t, r.Image == nil || device.ImageType(r.Image) != "")
	})
}
