package server_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres"
	"github.com/marquee-ads/marquee/services/device/postgres/postgrestest"
	"github.com/marquee-ads/marquee/services/device/server"
)

// clock is a time that a test sets.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// message is a playlist as players get it.
type message struct {
	Version  int64           `json:"version"`
	Items    []device.Item   `json:"items"`
	Schedule []device.Period `json:"schedule"`
}

// until is the end of its schedule.
func (m message) until() time.Time { return m.Schedule[len(m.Schedule)-1].Until }

// display is a player's session that keeps what it is sent.
type display struct {
	id   string // the device's
	mu   sync.Mutex
	sent []message
	end  device.EndReason
}

func (d *display) ID() string       { return "session of " + d.id }
func (d *display) DeviceID() string { return d.id }

func (d *display) Send(_ string, payload []byte) error {
	var m message
	if err := json.Unmarshal(payload, &m); err != nil {
		return fmt.Errorf("reading a playlist: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sent = append(d.sent, m)
	return nil
}

func (d *display) End(reason device.EndReason) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.end = reason
}

func (d *display) playlists() ([]message, device.EndReason) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.sent), d.end
}

// waitFor returns the last of so many playlists.
func (d *display) waitFor(t *testing.T, count int, within time.Duration) message {
	t.Helper()
	var all []message
	require.Eventually(t, func() bool { all, _ = d.playlists(); return len(all) >= count }, within, 5*time.Millisecond, "the playlist does not come")
	require.Len(t, all, count, "a playlist comes that nothing is new about")
	return all[count-1]
}

// booth is a device service that is told of booked lines, at noon of a Saturday in
// whose night clocks are set back.
type booth struct {
	*device.Service
	store  *postgres.Store
	db     *database.Database
	server *server.Server
	now    *clock
}

func newBooth(t *testing.T) *booth {
	t.Helper()
	store, db := postgrestest.New(t, &pg)
	now := &clock{at: time.Date(2026, 10, 24, 12, 0, 0, 0, time.UTC)}
	s := device.New(store, device.DefaultThrottle(), now.now, rand.Reader)
	require.NoError(t, store.AddPlayPartitions(t.Context(), now.now()))
	return &booth{Service: s, store: store, db: db, server: server.New(s, nil), now: now}
}

func (b *booth) create(t *testing.T, name string) string {
	t.Helper()
	made, err := b.Create(t.Context(), "acc_1", "request-"+name, one, device.Settings{
		Name: name, VenueType: "retail.malls", Screen: device.Screen{Width: 1, Height: 1}, LoopLength: time.Minute, SlotLength: 10 * time.Second,
		SlotPrice: device.Price{Currency: "EUR"}, TimeZone: "Europe/Berlin",
	})
	require.NoError(t, err)
	return made.ID
}

// handle is the handler of events, in a transaction of its own.
func (b *booth) handle(ctx context.Context, payload []byte) error {
	handle := b.store.LineChanged(server.Line, b.Takedown, b.now.now)
	return b.db.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return handle(ctx, tx, events.Event{ID: "event", Subject: postgres.LinesSubject, Payload: payload})
	})
}

func (b *booth) tell(t *testing.T, lines ...*orderv1.BookedLine) {
	t.Helper()
	for _, l := range lines {
		payload, err := proto.Marshal(&orderv1.LineChanged{Line: l})
		require.NoError(t, err)
		require.NoError(t, b.handle(t.Context(), payload))
	}
}

// line is on in the first slots from 24 to 25 October, and shows its first showing.
func line(deviceID, name string, slots ...int32) *orderv1.BookedLine {
	id := "lin_01ARZ3NDEKTSV4RRFFQ69G5F" + name
	return &orderv1.BookedLine{
		LineId: id, DeviceId: deviceID, Revision: 1, Flight: &orderv1.Flight{StartDate: "2026-10-24", EndDate: "2026-10-25"}, Slots: slots,
		StartTime: timestamppb.New(time.Date(2026, 10, 23, 22, 0, 0, 0, time.UTC)), EndTime: timestamppb.New(time.Date(2026, 10, 25, 23, 0, 0, 0, time.UTC)),
		Showing: showing(id, 1),
	}
}

func showing(lineID string, number int) *orderv1.Showing {
	hash := strings.Repeat(fmt.Sprint(number%10), 64)
	return &orderv1.Showing{ShowingId: fmt.Sprint(lineID, "-", number), Url: "/v1/media/" + hash, Sha256: hash, MediaType: "image/png", DurationMs: 10000}
}

// changed is a line with a greater revision, and a change.
func changed(l *orderv1.BookedLine, change func(*orderv1.BookedLine)) *orderv1.BookedLine {
	c := proto.Clone(l).(*orderv1.BookedLine)
	c.Revision++
	change(c)
	return c
}

func (b *booth) list(t *testing.T, ids ...string) []*orderv1.BookedLine {
	t.Helper()
	answer, err := b.server.ListBookedLines(t.Context(), &devicev1.ListBookedLinesRequest{DeviceIds: ids})
	require.NoError(t, err)
	require.Empty(t, answer.GetNextPageToken())
	return answer.GetLines()
}

func requireLines(t *testing.T, want, got []*orderv1.BookedLine) {
	t.Helper()
	require.Len(t, got, len(want))
	for n := range want {
		require.True(t, proto.Equal(want[n], got[n]), "want %s\nhave %s", want[n], got[n])
	}
}

func (b *booth) version(t *testing.T, id string) int64 {
	t.Helper()
	found, err := b.FindPlaylist(t.Context(), one, id)
	require.NoError(t, err)
	return found.Version
}

func (b *booth) takedowns(t *testing.T, id string) (showings []string) {
	t.Helper()
	list, _, err := b.ListCommands(t.Context(), one, id, paging.Page{Size: 100})
	require.NoError(t, err)
	for _, c := range list {
		require.Equal(t, device.Takedown, c.Kind)
		require.Equal(t, device.TakedownLifetime, c.ExpireTime.Sub(c.CreateTime))
		showings = append(showings, c.CreativeID)
	}
	return showings
}

func TestLinesAreTold(t *testing.T) {
	b := newBooth(t)
	id := b.create(t, "one")
	first := line(id, "A1", 0, 3)

	b.tell(t, first)
	requireLines(t, []*orderv1.BookedLine{first}, b.list(t))
	require.EqualValues(t, 1, b.version(t, id), "a device without a default playlist has one")
	b.tell(t, first)
	require.EqualValues(t, 1, b.version(t, id), "what it knows changes nothing")

	// Out of order: the one between two comes last.
	second := changed(first, func(l *orderv1.BookedLine) { l.Showing = showing(l.GetLineId(), 2) })
	third := changed(second, func(l *orderv1.BookedLine) {
		l.Dayparts = []*orderv1.Daypart{{Weekday: 6, StartMinute: 60, EndMinute: 120}}
	})
	b.tell(t, third, second)
	requireLines(t, []*orderv1.BookedLine{third}, b.list(t, id))
	require.EqualValues(t, 2, b.version(t, id))

	t.Run("NothingToSee", func(t *testing.T) {
		other := line(id, "A2", 1)
		other.Showing = nil
		b.tell(t, other)
		requireLines(t, []*orderv1.BookedLine{third, other}, b.list(t, id))
		require.EqualValues(t, 2, b.version(t, id), "a player is sent what it has")
		b.tell(t, changed(other, func(l *orderv1.BookedLine) { l.Showing = showing(l.GetLineId(), 1) }))
		require.EqualValues(t, 3, b.version(t, id))
	})
	t.Run("Removed", func(t *testing.T) {
		removed := changed(third, func(l *orderv1.BookedLine) { l.Removed = true })
		b.tell(t, removed)
		require.Len(t, b.list(t, id), 1)
		require.EqualValues(t, 4, b.version(t, id))
		b.tell(t, third, first)
		require.Len(t, b.list(t, id), 1, "what is told late brings it back")
		require.EqualValues(t, 4, b.version(t, id))
	})
	t.Run("DefaultPlaylist", func(t *testing.T) {
		p, err := b.PutPlaylist(t.Context(), one, id, []device.Item{{CreativeID: "a", DurationMS: 10000}})
		require.NoError(t, err)
		require.EqualValues(t, 5, p.Version)
		b.tell(t, line(id, "A3", 2))
		found, err := b.FindPlaylist(t.Context(), one, id)
		require.NoError(t, err)
		require.EqualValues(t, 6, found.Version)
		require.Equal(t, p.Items, found.Items)
		require.Equal(t, p.UpdateTime, found.UpdateTime)
	})
	t.Run("Nobodys", func(t *testing.T) {
		deleted := b.create(t, "deleted")
		b.tell(t, line(deleted, "B1", 0))
		require.NoError(t, b.Delete(t.Context(), one, deleted))
		before := b.list(t)
		b.tell(t, changed(line(deleted, "B1", 0), func(l *orderv1.BookedLine) { l.TakenDown = []string{l.GetLineId() + "-1"} }), line("dev_01ARZ3NDEKTSV4RRFFQ69G5FAV", "B2", 0))
		requireLines(t, before, b.list(t))
	})
	t.Run("Malformed", func(t *testing.T) {
		before := b.list(t)
		noDate := line(id, "C1", 0)
		noDate.Flight.EndDate = "2026-02-30"
		for name, payload := range map[string][]byte{"NoMessage": []byte("\xff\xff"), "Empty": nil, "NoDate": marshal(t, noDate), "NoSlot": marshal(t, line(id, "C1", 9999))} {
			require.ErrorContains(t, b.handle(t.Context(), payload), "reading a booked line", name)
		}
		requireLines(t, before, b.list(t))
	})
}

func marshal(t *testing.T, l *orderv1.BookedLine) []byte {
	t.Helper()
	payload, err := proto.Marshal(&orderv1.LineChanged{Line: l})
	require.NoError(t, err)
	return payload
}

func TestTakedownsAreSent(t *testing.T) {
	b := newBooth(t)
	id := b.create(t, "one")
	first := line(id, "A1", 0)
	b.tell(t, first)
	require.Empty(t, b.takedowns(t, id))
	down := changed(first, func(l *orderv1.BookedLine) { l.Showing, l.TakenDown = nil, []string{l.GetShowing().GetShowingId()} })
	b.tell(t, down)
	require.Equal(t, []string{first.GetShowing().GetShowingId()}, b.takedowns(t, id))
	list, _, err := b.ListCommands(t.Context(), one, id, paging.Page{})
	require.NoError(t, err)
	require.Equal(t, b.version(t, id), list[0].PlaylistVersion, "up to the playlist that has it no more")
	b.tell(t, down)
	require.Len(t, b.takedowns(t, id), 1, "what it knows is sent again")
	b.tell(t, changed(down, func(*orderv1.BookedLine) {}))
	require.Len(t, b.takedowns(t, id), 1, "what it was told before is sent again")
	// One that comes late is taken down all the same, and one that it never had is not.
	shown := changed(down, func(l *orderv1.BookedLine) { l.Revision, l.Showing = 4, showing(l.GetLineId(), 2) })
	late := changed(shown, func(l *orderv1.BookedLine) { l.TakenDown = append(l.TakenDown, l.GetLineId()+"-2", l.GetLineId()+"-3") })
	last := changed(late, func(l *orderv1.BookedLine) { l.Showing, l.TakenDown = nil, down.GetTakenDown() })
	b.tell(t, shown, last, late)
	require.ElementsMatch(t, []string{first.GetLineId() + "-1", first.GetLineId() + "-2"}, b.takedowns(t, id))
	require.EqualValues(t, 6, b.list(t, id)[0].GetRevision())

	// More than a player may have open are not sent: the playlist says the same.
	many := last
	for n := range 2 * device.MaxOpenCommands {
		many = changed(many, func(l *orderv1.BookedLine) { l.Showing = showing(l.GetLineId(), 10+n) })
		b.tell(t, many)
	}
	many = changed(many, func(l *orderv1.BookedLine) {
		l.Showing = nil
		for n := range 2 * device.MaxOpenCommands {
			l.TakenDown = append(l.TakenDown, fmt.Sprint(l.GetLineId(), "-", 10+n))
		}
	})
	b.tell(t, many)
	require.Len(t, b.takedowns(t, id), device.MaxOpenCommands)
	b.tell(t, changed(many, func(*orderv1.BookedLine) {}))
	require.Len(t, b.takedowns(t, id), device.MaxOpenCommands)
}

// TestLinesOfManyAtOnce: what is booked, put, sent and set at the same time does not
// stand in each other's way.
func TestLinesOfManyAtOnce(t *testing.T) {
	const rounds = 15
	b := newBooth(t)
	ids := []string{b.create(t, "one"), b.create(t, "two")}
	group, err := b.CreateGroup(t.Context(), "acc_1", "request-group", one, "all")
	require.NoError(t, err)
	_, err = b.AddGroupDevices(t.Context(), one, group.ID, ids)
	require.NoError(t, err)
	var all sync.WaitGroup
	failed := make(chan error, 1000)
	for n := range rounds {
		for i, id := range ids {
			all.Go(func() {
				l := line(id, "A1", 0)
				l.Revision, l.TakenDown = int64(1+n), []string{fmt.Sprint(l.GetLineId(), "-", n)}
				failed <- b.handle(t.Context(), marshal(t, l))
			})
			all.Go(func() {
				_, err := b.server.PutBookedLines(t.Context(), &devicev1.PutBookedLinesRequest{DeviceId: id, Lines: []*orderv1.BookedLine{line(id, "A1", 0), line(id, "A2", 1)}})
				failed <- err
			})
			all.Go(func() {
				_, err := b.PutPlaylist(t.Context(), one, id, []device.Item{{CreativeID: "a", DurationMS: 1000 + n}})
				failed <- err
			})
			all.Go(func() {
				_, err := b.SendGroupCommand(t.Context(), "acc_1", fmt.Sprint("request-", n, i), one, group.ID, device.Instruction{Kind: device.Refresh})
				failed <- err
			})
		}
	}
	all.Wait()
	close(failed)
	for err := range failed {
		require.NoError(t, err)
	}
	for _, id := range ids {
		require.EqualValues(t, rounds, b.list(t, id)[0].GetRevision())
	}
}

// documents are those that the player of a device is sent, by a plane of its own.
func (b *booth) documents(t *testing.T, id string) *display {
	t.Helper()
	code, _, err := b.CreateClaimCode(t.Context(), one, id)
	require.NoError(t, err)
	c, err := b.Claim(t.Context(), code, "")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	plane := device.NewPlane(b.store, "instance-"+id, b.now.now, hclog.NewNullLogger())
	var running sync.WaitGroup
	running.Go(func() { _ = plane.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	pass, err := plane.Admit(t.Context(), id, c.Secret)
	require.NoError(t, err)
	session := &display{id: id}
	plane.Connected(t.Context(), pass, session)
	plane.Listens(t.Context(), session, device.ChannelPlaylist)
	return session
}

// TestBookedDocuments: a connected player gets what is booked within a second, over
// the night in which the clocks are set back; a rebuild makes the same of it.
func TestBookedDocuments(t *testing.T) {
	b := newBooth(t)
	id := b.create(t, "one")
	session := b.documents(t, id)
	morning, evening := line(id, "A1", 0, 2), line(id, "A2", 0)
	for day := int32(1); day <= 7; day++ {
		morning.Dayparts = append(morning.Dayparts, &orderv1.Daypart{Weekday: day, EndMinute: 150})
		evening.Dayparts = append(evening.Dayparts, &orderv1.Daypart{Weekday: day, StartMinute: 150, EndMinute: 1440})
	}
	sent, _ := session.playlists()
	require.Empty(t, sent, "it has nothing to play")
	b.tell(t, morning)
	require.EqualValues(t, 1, session.waitFor(t, 1, time.Second).Version)
	b.tell(t, evening)
	session.waitFor(t, 2, time.Second)
	_, err := b.PutPlaylist(t.Context(), one, id, []device.Item{{CreativeID: "a", DurationMS: 10000}})
	require.NoError(t, err)
	told := session.waitFor(t, 3, time.Second)
	of := func(m message) (all []string) {
		for _, p := range m.Schedule {
			text := p.From.Format("02. 15:04") + ":"
			for _, place := range p.Loop {
				text += " " + strings.TrimPrefix(m.Items[place].CreativeID, "lin_01ARZ3NDEKTSV4RRFFQ69G5F")
			}
			all = append(all, text)
		}
		return all
	}
	// In Berlin it is 02:30 at 00:30 and at 01:30 UTC, and 03:00 at 01:00 the first time,
	// when it is 02:00 again.
	want := []string{"24. 11:00: A2-1 a a a a a", "24. 22:00: A1-1 a A1-1 a a a", "25. 00:30: A2-1 a a a a a", "25. 01:00: A1-1 a A1-1 a a a", "25. 01:30: A2-1 a a a a a"}
	require.Equal(t, want, of(told))
	require.Equal(t, time.Date(2026, 10, 25, 19, 0, 0, 0, time.UTC), told.until())

	// An owner who takes slots away leaves the others.
	found, err := b.Find(t.Context(), one, id)
	require.NoError(t, err)
	shorter := found.Settings
	shorter.LoopLength = 20 * time.Second
	_, err = b.Update(t.Context(), one, id, shorter, 0)
	require.NoError(t, err)
	require.Equal(t, []string{"24. 11:00: A2-1 a", "24. 22:00: A1-1 a", "25. 00:30: A2-1 a", "25. 01:00: A1-1 a", "25. 01:30: A2-1 a"}, of(session.waitFor(t, 4, time.Second)))
	_, err = b.Update(t.Context(), one, id, found.Settings, 0)
	require.NoError(t, err)
	require.Equal(t, want, of(session.waitFor(t, 5, time.Second)))

	put := func(lines ...*orderv1.BookedLine) int32 {
		t.Helper()
		answer, err := b.server.PutBookedLines(t.Context(), &devicev1.PutBookedLinesRequest{DeviceId: id, Lines: lines})
		require.NoError(t, err)
		return answer.GetChanged()
	}
	require.Zero(t, put(evening, morning), "it knows them")
	require.EqualValues(t, 2, put())
	require.Equal(t, []string{"24. 11:00: a"}, of(session.waitFor(t, 6, time.Second)))
	require.EqualValues(t, 2, put(morning, evening))
	again := session.waitFor(t, 7, time.Second)
	require.Equal(t, told.Items, again.Items)
	require.Equal(t, told.Schedule, again.Schedule)
	_, end := session.playlists()
	require.Empty(t, end)

	// A line that comes into the time of the schedule comes without a new version.
	later := line(id, "A3", 1)
	later.Flight = &orderv1.Flight{StartDate: "2026-10-26", EndDate: "2026-10-26"}
	later.EndTime = timestamppb.New(later.GetEndTime().AsTime().Add(24 * time.Hour))
	b.tell(t, later)
	before := session.waitFor(t, 8, time.Second)
	require.Equal(t, again.Schedule, before.Schedule)
	b.now.forward(6 * time.Hour)
	after := session.waitFor(t, 9, 10*time.Second)
	require.Equal(t, before.Version, after.Version)
	require.Equal(t, "25. 23:00: a A3-1 a a a a", of(after)[len(of(after))-1])
}

// TestShortSchedulesComeInTime: a player whose schedule has no room for all that is
// booked gets the rest before that ends.
func TestShortSchedulesComeInTime(t *testing.T) {
	b := newBooth(t)
	id := b.create(t, "one")
	session := b.documents(t, id)
	l := line(id, "A1", 0)
	for hour := range int32(5) {
		for n := range int32(8) {
			l.Dayparts = append(l.Dayparts, &orderv1.Daypart{Weekday: 6, StartMinute: 60*(14+hour) + 6*n, EndMinute: 60*(14+hour) + 6*n + 3})
		}
	}
	b.tell(t, l)
	short := session.waitFor(t, 1, time.Second)
	require.Len(t, short.Schedule, device.MaxPeriods)
	left := short.until().Sub(b.now.now())
	require.Less(t, left, 5*time.Hour)
	b.now.forward(left/2 + time.Second)
	require.True(t, session.waitFor(t, 2, 10*time.Second).until().After(short.until()))
}

// field is the one that an error names.
func field(t *testing.T, err error) string {
	t.Helper()
	f, ok := fault.From(err)
	require.True(t, ok, "%v", err)
	require.Len(t, f.Fields, 1)
	return f.Fields[0].Path
}

func TestPutBookedLines(t *testing.T) {
	b := newBooth(t)
	id := b.create(t, "one")
	first, second := line(id, "A1", 0), line(id, "A2", 1)
	put := func(lines ...*orderv1.BookedLine) (int32, error) {
		answer, err := b.server.PutBookedLines(t.Context(), &devicev1.PutBookedLinesRequest{DeviceId: id, Lines: lines})
		return answer.GetChanged(), err
	}
	makes := func(changed int32, lines ...*orderv1.BookedLine) {
		t.Helper()
		n, err := put(lines...)
		require.NoError(t, err)
		require.Equal(t, changed, n)
	}
	makes(2, first, second)
	requireLines(t, []*orderv1.BookedLine{first, second}, b.list(t, id))
	require.EqualValues(t, 1, b.version(t, id), "one version for all of it")
	makes(0, first, second)
	require.EqualValues(t, 1, b.version(t, id))

	later := changed(first, func(l *orderv1.BookedLine) { l.Showing = showing(l.GetLineId(), 2) })
	b.tell(t, later) // and what it comes after is what a rebuild knows
	makes(0, first, second)
	requireLines(t, []*orderv1.BookedLine{later, second}, b.list(t, id))

	wrong := proto.Clone(second).(*orderv1.BookedLine)
	wrong.Slots = []int32{4}
	makes(1, later, wrong)
	makes(1, later, second)
	requireLines(t, []*orderv1.BookedLine{later, second}, b.list(t, id))

	makes(1, changed(later, func(l *orderv1.BookedLine) { l.Removed, l.TakenDown = true, []string{l.GetLineId() + "-2"} }), second)
	requireLines(t, []*orderv1.BookedLine{second}, b.list(t, id))
	require.Equal(t, []string{later.GetLineId() + "-2"}, b.takedowns(t, id))
	makes(0, second)
	makes(1)
	require.Empty(t, b.list(t, id))
	makes(1, second)
	over := line(id, "A4", 2)
	over.EndTime = timestamppb.New(b.now.now().Add(-time.Second))
	b.tell(t, over)
	makes(0, second)
	requireLines(t, []*orderv1.BookedLine{second, over}, b.list(t, id))
	makes(0, second, over)
	makes(1, second, changed(over, func(l *orderv1.BookedLine) { l.Removed = true }))
	past := line(id, "A3", 2)
	past.StartTime, past.EndTime = timestamppb.New(b.now.now().Add(-33*24*time.Hour)), timestamppb.New(b.now.now().Add(-32*24*time.Hour))
	makes(0, second, past)

	for name, c := range map[string]struct {
		lines []*orderv1.BookedLine
		field string
	}{
		"ErrDevice": {[]*orderv1.BookedLine{second, line("dev_01ARZ3NDEKTSV4RRFFQ69G5FAV", "A1", 0)}, "lines[1]"},
		"ErrTwice":  {[]*orderv1.BookedLine{second, second}, "lines[1]"},
		"ErrLine":   {[]*orderv1.BookedLine{changed(second, func(l *orderv1.BookedLine) { l.Slots = []int32{2, 1} })}, "lines[0]"},
		"ErrDate":   {[]*orderv1.BookedLine{changed(second, func(l *orderv1.BookedLine) { l.Flight = nil })}, "lines[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := put(c.lines...)
			require.ErrorIs(t, err, device.ErrLine)
			require.Equal(t, c.field, field(t, err))
			requireLines(t, []*orderv1.BookedLine{second}, b.list(t, id))
		})
	}
	t.Run("ErrNotFound", func(t *testing.T) {
		_, err := b.server.PutBookedLines(t.Context(), &devicev1.PutBookedLinesRequest{DeviceId: "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV"})
		require.ErrorIs(t, err, device.ErrNotFound)
		require.NoError(t, b.Delete(t.Context(), one, id))
		_, err = put(second)
		require.ErrorIs(t, err, device.ErrNotFound)
	})
}

func TestListBookedLines(t *testing.T) {
	b := newBooth(t)
	var want []*orderv1.BookedLine
	ids := []string{b.create(t, "one"), b.create(t, "two"), b.create(t, "three")}
	slices.Sort(ids)
	for _, id := range ids {
		for n := range 3 {
			l := line(id, fmt.Sprint("A", n), int32(n))
			b.tell(t, l)
			want = append(want, l)
		}
	}
	var got []*orderv1.BookedLine
	for token := ""; ; {
		page, err := b.server.ListBookedLines(t.Context(), &devicev1.ListBookedLinesRequest{PageSize: 2, PageToken: token})
		require.NoError(t, err)
		require.LessOrEqual(t, len(page.GetLines()), 2)
		got = append(got, page.GetLines()...)
		require.LessOrEqual(t, len(got), len(want))
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	requireLines(t, want, got)
	requireLines(t, want[3:6], b.list(t, ids[1]))
	requireLines(t, append(want[:3:3], want[6:]...), b.list(t, ids[2], ids[0]))
	_, err := b.server.ListBookedLines(t.Context(), &devicev1.ListBookedLinesRequest{PageToken: "?"})
	require.ErrorIs(t, err, paging.ErrTokenInvalid)

	// Some time after their end they are forgotten.
	end := want[0].GetEndTime().AsTime()
	_, err = b.store.Sweep(t.Context(), end.Add(device.LinesKept-time.Second))
	require.NoError(t, err)
	require.Len(t, b.list(t), len(want))
	_, err = b.store.Sweep(t.Context(), end.Add(device.LinesKept+time.Second))
	require.NoError(t, err)
	require.Empty(t, b.list(t))
}

func TestSumPlays(t *testing.T) {
	b := newBooth(t)
	id, other := b.create(t, "one"), b.create(t, "two")
	l, longer := line(id, "A1", 0), line(id, "A1", 0)
	longer.LineId += "0" // its id begins with that of the other
	longer.Showing = showing(longer.GetLineId(), 1)
	b.tell(t, l, longer, line(other, "A1", 0))
	b.tell(t, changed(l, func(l *orderv1.BookedLine) { l.Showing = showing(l.GetLineId(), 12) }))
	at := func(day, hour, minute int) time.Time { return time.Date(2026, 10, day, hour, minute, 0, 0, time.UTC) }
	var plays []device.Play
	add := func(deviceID, showingID string, began time.Time, duration time.Duration) {
		plays = append(plays, device.Play{
			DeviceID: deviceID, ID: ulid.MustNew(ulid.Timestamp(began), rand.Reader).String(), CreativeID: showingID, Start: began, Duration: duration,
		})
	}
	const full = 10 * time.Second
	add(id, l.GetLineId()+"-1", at(23, 21, 59), full)
	add(id, l.GetLineId()+"-1", at(23, 22, 0), full)
	add(id, l.GetLineId()+"-1", at(23, 23, 59), 9*time.Second) // too short to count
	add(id, l.GetLineId()+"-12", at(24, 0, 0), full)
	add(id, l.GetLineId()+"-12", at(24, 11, 30), full)
	add(id, longer.GetLineId()+"-1", at(24, 11, 30), full)
	add(other, l.GetLineId()+"-1", at(24, 11, 30), full)
	add(id, l.GetLineId()+"-2", at(24, 11, 40), full) // never its
	stored, err := b.store.StorePlays(t.Context(), plays, nil, b.now.now())
	require.NoError(t, err)
	require.Len(t, stored.Added, len(plays)-1)
	require.Equal(t, map[device.PlayKey]device.Rejection{{DeviceID: id, PlayID: plays[7].ID}: device.UnknownCreative}, stored.Rejected)

	period := func(deviceID, lineID string, from, to time.Time) *devicev1.LinePeriod {
		return &devicev1.LinePeriod{DeviceId: deviceID, LineId: lineID, FromTime: timestamppb.New(from), ToTime: timestamppb.New(to)}
	}
	sum := func(byDay bool, lines ...*devicev1.LinePeriod) (all []string) {
		t.Helper()
		answer, err := b.server.SumPlays(t.Context(), &devicev1.SumPlaysRequest{Lines: lines, ByDay: byDay})
		require.NoError(t, err)
		for _, s := range answer.GetSums() {
			all = append(all, strings.TrimSpace(fmt.Sprintf("%s %d of %d, %d s %s", strings.TrimPrefix(s.GetLineId(), "lin_01ARZ3NDEKTSV4RRFFQ69G5F"), s.GetCountedPlays(), s.GetPlays(), s.GetDurationMs()/1000, s.GetDay())))
		}
		return all
	}
	all := period(id, l.GetLineId(), at(1, 0, 0), at(31, 0, 0))
	require.Equal(t, []string{"A1 4 of 5, 49 s"}, sum(false, all))
	require.Equal(t, []string{"A1 2 of 3, 29 s 2026-10-23", "A1 2 of 2, 20 s 2026-10-24"}, sum(true, all))
	require.Equal(t, []string{"A1 1 of 1, 10 s", "A10 1 of 1, 10 s", "A1 4 of 5, 49 s"},
		sum(false, period(other, l.GetLineId(), at(1, 0, 0), at(31, 0, 0)), period(id, longer.GetLineId(), at(1, 0, 0), at(31, 0, 0)), period(other, longer.GetLineId(), at(1, 0, 0), at(31, 0, 0)), all))
	// More than is summed at once.
	var many []*devicev1.LinePeriod
	var want []string
	for n := range 150 {
		many = append(many, period(id, l.GetLineId(), at(1, 0, 0).Add(-399*24*time.Hour), at(1, 0, 0)))
		if n%10 == 0 {
			many, want = append(many, all), append(want, "A1 4 of 5, 49 s")
		}
	}
	require.Equal(t, want, sum(false, many...))
	// Hours that end after the beginning and begin before the end are in it, whole.
	require.Equal(t, []string{"A1 3 of 4, 39 s"}, sum(false, period(id, l.GetLineId(), at(23, 22, 0), at(31, 0, 0))))
	require.Equal(t, []string{"A1 4 of 5, 49 s"}, sum(false, period(id, l.GetLineId(), at(23, 21, 59), at(31, 0, 0))))
	require.Equal(t, []string{"A1 1 of 1, 10 s"}, sum(false, period(id, l.GetLineId(), at(24, 11, 59), at(31, 0, 0))))
	require.Empty(t, sum(false, period(id, l.GetLineId(), at(24, 12, 0), at(31, 0, 0))))
	require.Equal(t, []string{"A1 3 of 4, 39 s"}, sum(false, period(id, l.GetLineId(), at(1, 0, 0), at(24, 11, 0))))
	require.Equal(t, []string{"A1 4 of 5, 49 s"}, sum(false, period(id, l.GetLineId(), at(1, 0, 0), at(24, 11, 1))))
	for _, p := range []*devicev1.LinePeriod{period(id, l.GetLineId(), at(2, 0, 0), at(2, 0, 0)), period(id, l.GetLineId(), at(1, 0, 0), at(1, 0, 0).Add(400*24*time.Hour+1))} {
		_, err := b.server.SumPlays(t.Context(), &devicev1.SumPlaysRequest{Lines: []*devicev1.LinePeriod{all, p}})
		require.ErrorIs(t, err, device.ErrLinePeriod)
		require.Equal(t, "lines[1].to_time", field(t, err))
	}
	disagree, err := b.store.Disagreements(t.Context(), device.Span{From: at(1, 0, 0), To: at(31, 0, 0)}, 10)
	require.NoError(t, err)
	require.Empty(t, disagree)
}
