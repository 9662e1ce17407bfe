package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/natstest"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// seller tells of booked lines, as the service that sells them does.
type seller struct{ js jetstream.JetStream }

func newSeller(t *testing.T, server *natstest.Server) *seller {
	t.Helper()
	conn, err := nats.Connect(server.Address)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	_, err = js.CreateStream(within(t), jetstream.StreamConfig{Name: "ORDER", Subjects: []string{"line.>", "order.>"}, Storage: jetstream.MemoryStorage})
	require.NoError(t, err)
	return &seller{js}
}

// says publishes an event, and returns its id.
func (s *seller) says(t *testing.T, subject, key string, payload []byte) string {
	t.Helper()
	id := ulid.Make().String()
	s.repeats(t, id, subject, key, payload)
	return id
}

func (s *seller) repeats(t *testing.T, id, subject, key string, payload []byte) {
	t.Helper()
	_, err := s.js.PublishMsg(within(t), &nats.Msg{Subject: subject, Data: payload, Header: nats.Header{
		"Nats-Msg-Id": {id}, "Marquee-Key": {key}, "Marquee-Time": {time.Now().UTC().Format(time.RFC3339Nano)},
	}})
	require.NoError(t, err)
}

func (s *seller) tells(t *testing.T, l *orderv1.BookedLine) string {
	t.Helper()
	return s.says(t, "line.changed", l.GetDeviceId(), lineChanged(t, l))
}

func lineChanged(t *testing.T, l *orderv1.BookedLine) []byte {
	t.Helper()
	payload, err := proto.Marshal(&orderv1.LineChanged{Line: l})
	require.NoError(t, err)
	return payload
}

// bookedLine is on now and for a day, in slots of a device.
func bookedLine(deviceID string, n int, slots ...int32) *orderv1.BookedLine {
	id := fmt.Sprintf("lin_01ARZ3NDEKTSV4RRFFQ69G%04d", n)
	hash := strings.Repeat(fmt.Sprint(n%10), 64)
	now := time.Now().UTC()
	return &orderv1.BookedLine{
		LineId: id, DeviceId: deviceID, Revision: 1, Slots: slots,
		Flight:    &orderv1.Flight{StartDate: now.Add(-48 * time.Hour).Format(time.DateOnly), EndDate: now.Add(48 * time.Hour).Format(time.DateOnly)},
		StartTime: timestamppb.New(now.Add(-24 * time.Hour)), EndTime: timestamppb.New(now.Add(48 * time.Hour)),
		Showing: &orderv1.Showing{ShowingId: id + "-1", Url: "/v1/media/" + hash, Sha256: hash, MediaType: "image/png", DurationMs: 10000},
	}
}

// alwaysOn enrols a device that is.
func (i *instance) alwaysOn(t *testing.T, requestID string) *devicev1.Credentials {
	t.Helper()
	device := i.enrol(t, requestID)
	s := goodSettings()
	s.Hours = nil
	_, err := i.UpdateDevice(i.owner(t), &devicev1.UpdateDeviceRequest{OrganisationId: organisation, DeviceId: device.GetDeviceId(), Settings: s})
	require.NoError(t, err)
	return device
}

// downPlaylist is a playlist as a player gets it.
type downPlaylist struct {
	Version int64 `json:"version"`
	Items   []struct {
		CreativeID string `json:"creative_id"`
	} `json:"items"`
	Schedule []struct {
		From  time.Time `json:"from"`
		Until time.Time `json:"until"`
		Loop  []int     `json:"loop"`
	} `json:"schedule"`
}

// on is what it shows now.
func (p downPlaylist) on() (creatives []string) {
	for _, period := range p.Schedule {
		if now := time.Now(); !now.Before(period.From) && now.Before(period.Until) {
			for _, place := range period.Loop {
				creatives = append(creatives, p.Items[place].CreativeID)
			}
		}
	}
	return creatives
}

// nextPlaylist skips messages of other channels.
func nextPlaylist(t *testing.T, p player) downPlaylist {
	t.Helper()
	for {
		m := next(t, p)
		if !strings.HasSuffix(m.topic, "/down/playlist") {
			continue
		}
		var playlist downPlaylist
		require.NoError(t, json.Unmarshal([]byte(m.payload), &playlist))
		return playlist
	}
}

// TestBookedLines tells of lines over NATS: players that are connected to either
// instance get them, show them, and hand in plays of them.
func TestBookedLines(t *testing.T) {
	server := natstest.Start(t)
	w := newWorld(t)
	w.nats = server.Address
	one, two := w.start(t), w.start(t)
	tells := newSeller(t, server)
	n := 0
	each(t, func(t *testing.T, connect func(*testing.T, string, *devicev1.Credentials) player) {
		n++
		instance := one
		if n%2 == 0 {
			instance = two
		}
		device := one.alwaysOn(t, requestID(t))
		id := device.GetDeviceId()
		p := connect(t, instance.players, device)
		require.Equal(t, []bool{true}, p.subscribe(t, "d/"+id+"/down/#"))
		line := bookedLine(id, 10*n, 0)
		showing := line.GetShowing().GetShowingId()

		began := time.Now()
		event := tells.tells(t, line)
		first := nextPlaylist(t, p)
		t.Logf("what was booked arrived %s after it was told", time.Since(began))
		require.EqualValues(t, 1, first.Version)
		require.Equal(t, []string{showing}, first.on())
		put(t, one, id, "default")
		second := nextPlaylist(t, p)
		require.EqualValues(t, 2, second.Version)
		require.Equal(t, showing, second.on()[0])
		require.Equal(t, "default", second.on()[1])
		require.Len(t, second.on(), 6)

		// The same once more, what is older, and another line: only that is new.
		tells.repeats(t, event+"x", "line.changed", id, lineChanged(t, line))
		other := bookedLine(id, 10*n+1, 2)
		other.Revision = 3
		tells.tells(t, other)
		older := proto.Clone(other).(*orderv1.BookedLine)
		older.Revision, older.Slots = 2, []int32{3}
		tells.tells(t, older)
		third := nextPlaylist(t, p)
		require.EqualValues(t, 3, third.Version)
		require.Equal(t, []string{showing, "default", other.GetShowing().GetShowingId(), "default", "default", "default"}, third.on())

		// A play of it counts, and is summed with those of its other showings.
		hour := time.Now().UTC().Add(-2 * time.Hour).Truncate(time.Hour)
		require.NoError(t, p.publish("d/"+id+"/up/plays", batch("one", play(hour.Add(time.Minute), showing, 10000), play(hour.Add(2*time.Minute), showing, 9000))))
		m := next(t, p)
		require.JSONEq(t, `{"batch_id":"one","accepted":2,"duplicate":0,"rejected":0}`, m.payload)
		plays, err := one.ListPlays(one.owner(t), &devicev1.ListPlaysRequest{OrganisationId: organisation, DeviceId: id})
		require.NoError(t, err)
		require.Len(t, plays.GetHours(), 1)
		require.Equal(t, [2]int64{2, 1}, [2]int64{plays.GetHours()[0].GetPlays(), plays.GetHours()[0].GetCountedPlays()})

		down := proto.Clone(line).(*orderv1.BookedLine)
		down.Revision, down.Showing, down.TakenDown = 2, nil, []string{showing}
		began = time.Now()
		tells.tells(t, down)
		var fourth downPlaylist
		var command downCommand
		for fourth.Version == 0 || command.Kind == "" {
			m := next(t, p)
			if strings.HasSuffix(m.topic, "/down/commands") {
				require.NoError(t, json.Unmarshal([]byte(m.payload), &command))
			} else {
				require.NoError(t, json.Unmarshal([]byte(m.payload), &fourth))
			}
		}
		t.Logf("a takedown arrived %s after it was told", time.Since(began))
		require.Equal(t, [2]string{"TAKEDOWN", showing}, [2]string{command.Kind, command.CreativeID})
		require.EqualValues(t, 4, *command.PlaylistVersion)
		require.EqualValues(t, 4, fourth.Version)
		require.NotContains(t, fourth.on(), showing)
		require.Contains(t, fourth.on(), other.GetShowing().GetShowingId())

		gone := proto.Clone(other).(*orderv1.BookedLine)
		gone.Revision, gone.Removed = 4, true
		tells.tells(t, gone)
		fifth := nextPlaylist(t, p)
		require.EqualValues(t, 5, fifth.Version)
		require.Equal(t, []string{"default"}, fifth.on())

		// It is there on the next connection, too.
		tells.tells(t, bookedLine(id, 10*n+2, 5))
		require.EqualValues(t, 6, nextPlaylist(t, p).Version)
		p.close()
		q := connect(t, one.players, device)
		require.Equal(t, []bool{true}, q.subscribe(t, "d/"+id+"/down/playlist"))
		again := nextPlaylist(t, q)
		require.EqualValues(t, 6, again.Version)
		require.Equal(t, bookedLine(id, 10*n+2).GetShowing().GetShowingId(), again.on()[5])
	})
}

// TestBookedLinesNobodyKnows: what cannot be used is in the way of nothing, and what
// cannot be read is set aside.
func TestBookedLinesNobodyKnows(t *testing.T) {
	server := natstest.Start(t)
	w := newWorld(t)
	w.nats = server.Address
	i := w.start(t)
	tells := newSeller(t, server)
	deleted := i.enrol(t, "request-1").GetDeviceId()
	_, err := i.DeleteDevice(i.owner(t), &devicev1.DeleteDeviceRequest{OrganisationId: organisation, DeviceId: deleted})
	require.NoError(t, err)
	device := i.alwaysOn(t, "request-2")
	p, err := dial5(t, i.players, device.GetDeviceId(), device.GetSecret())
	require.NoError(t, err)
	require.Equal(t, []bool{true}, p.subscribe(t, "d/"+device.GetDeviceId()+"/down/playlist"))

	tells.tells(t, bookedLine(deleted, 1, 0))
	tells.tells(t, bookedLine("dev_01ARZ3NDEKTSV4RRFFQ69G5FAV", 2, 0))
	tells.says(t, "order.booked", "ord_1", []byte("another subject"))
	malformed := []string{
		tells.says(t, "line.changed", device.GetDeviceId(), []byte("no message")),
		tells.tells(t, bookedLine(device.GetDeviceId(), 3, -1)),
	}
	good := bookedLine(device.GetDeviceId(), 4, 0)
	tells.tells(t, good)
	require.Equal(t, []string{good.GetShowing().GetShowingId()}, nextPlaylist(t, p).on())

	db, err := pgx.Connect(within(t), w.url)
	require.NoError(t, err)
	defer db.Close(within(t))
	rows, err := db.Query(within(t), "SELECT event_id FROM dead_letters WHERE consumer = 'device' ORDER BY event_id")
	require.NoError(t, err)
	aside, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.ElementsMatch(t, malformed, aside)
	var kept int
	require.NoError(t, db.QueryRow(within(t), "SELECT count(*) FROM booked_lines").Scan(&kept))
	require.Equal(t, 1, kept)
}

// What is for another service is refused to accounts, whatever they may otherwise.
func TestLinesAreForServices(t *testing.T) {
	i := newWorld(t).start(t)
	id := i.create(t, "request-1").GetDeviceId()
	_, err := i.SumPlays(i.owner(t), &devicev1.SumPlaysRequest{Lines: []*devicev1.LinePeriod{{
		DeviceId: id, LineId: bookedLine(id, 1).GetLineId(), FromTime: timestamppb.New(time.Now().Add(-time.Hour)), ToTime: timestamppb.Now(),
	}}})
	refused(t, err, codes.PermissionDenied, "SERVICE_NOT_ALLOWED")
	_, err = i.ListBookedLines(i.owner(t), &devicev1.ListBookedLinesRequest{})
	refused(t, err, codes.PermissionDenied, "SERVICE_NOT_ALLOWED")
	_, err = i.PutBookedLines(i.owner(t), &devicev1.PutBookedLinesRequest{DeviceId: id})
	refused(t, err, codes.PermissionDenied, "SERVICE_NOT_ALLOWED")
}
