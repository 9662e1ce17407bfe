package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/natstest"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/platform/service"
)

var pg pgtest.Server

func TestMain(m *testing.M) { os.Exit(pg.Main(m)) }

// patience is for conditions that come true in well under a second on an idle
// machine.
const patience = 30 * time.Second

// bed is a publisher and a consumer with a database each, and NATS between them.
type bed struct {
	t         testing.TB
	nats      *natstest.Server
	stream    Stream
	outbox    *Outbox
	publisher *database.Database
	consumer  *database.Database
}

func newBed(t testing.TB) *bed {
	return newBedOn(t, &pg, natstest.Start(t))
}

func newBedOn(t testing.TB, server *pgtest.Server, nats *natstest.Server) *bed {
	t.Helper()
	b := &bed{t: t, nats: nats, stream: Stream{Name: "ORDER", Subjects: []string{"booking.>"}}}
	b.publisher, b.consumer = openDatabase(t, server), openDatabase(t, server)
	b.exec(b.publisher, "CREATE TABLE counters (key text PRIMARY KEY, n int NOT NULL)")
	b.exec(b.consumer, "CREATE TABLE effects (effect_id bigint GENERATED ALWAYS AS IDENTITY, event_id text NOT NULL, key text NOT NULL, payload text NOT NULL)")
	var err error
	b.outbox, err = NewOutbox(b.stream)
	require.NoError(t, err)
	return b
}

func openDatabase(t testing.TB, server *pgtest.Server) *database.Database {
	t.Helper()
	name, _, _ := strings.Cut(strings.TrimPrefix(server.Database(t), "postgres:///"), "?")
	cfg := database.Config{Application: "test", Host: server.SocketDir(t), Name: name, User: "test", MaxConns: 12}
	db, err := database.Open(t.Context(), cfg, hclog.NewNullLogger())
	require.NoError(t, err)
	t.Cleanup(db.Close)
	_, err = db.Pool().Exec(t.Context(), Schema())
	require.NoError(t, err)
	return db
}

func (b *bed) exec(db *database.Database, sql string, args ...any) {
	b.t.Helper()
	_, err := db.Pool().Exec(b.t.Context(), sql, args...)
	require.NoError(b.t, err)
}

func (b *bed) bus() *Bus {
	b.t.Helper()
	bus, err := Connect(Config{Name: "test", Address: b.nats.Address, Log: b.log()})
	require.NoError(b.t, err)
	b.t.Cleanup(bus.Close)
	return bus
}

func (b *bed) log() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Output: &logWriter{t: b.t}, Level: hclog.Info})
}

// logWriter writes into the test's log, while there is a test.
type logWriter struct {
	t    testing.TB
	mu   sync.Mutex
	over bool
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.t.Context().Done():
		w.over = true
	default:
	}
	if !w.over {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// run runs until the returned function is called, which waits for the end.
func (b *bed) run(work func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- work(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				assert.NoError(b.t, err)
			case <-time.After(patience):
				b.t.Error("it does not end")
			}
		})
	}
	b.t.Cleanup(stop)
	return stop
}

func (b *bed) relay() (stop func()) { return b.run(NewRelay(b.publisher, b.bus(), b.stream).Run) }

func (b *bed) newConsumer(handle Handler) *Consumer {
	b.t.Helper()
	c, err := NewConsumer(b.consumer, b.bus(), ConsumerConfig{
		Stream: b.stream.Name, Name: "device", Subjects: []string{"booking.>"}, Handle: handle, Retry: 10 * time.Millisecond, Attempts: 3,
	})
	require.NoError(b.t, err)
	return c
}

// record is the handler that writes the event down.
func record(ctx context.Context, tx pgx.Tx, e Event) error {
	_, err := tx.Exec(ctx, "INSERT INTO effects (event_id, key, payload) VALUES ($1, $2, $3)", e.ID, e.Key, string(e.Payload))
	return err
}

// append appends one event of a key in a transaction of its own, with the next
// number of the key as payload.
func (b *bed) append(ctx context.Context, key string) error {
	return b.publisher.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error { return b.appendIn(ctx, tx, key) })
}

func (b *bed) appendIn(ctx context.Context, tx pgx.Tx, key string) error {
	var n int
	err := tx.QueryRow(ctx, `INSERT INTO counters (key, n) VALUES ($1, 1)
		ON CONFLICT (key) DO UPDATE SET n = counters.n + 1 RETURNING n`, key).Scan(&n)
	if err != nil {
		return err
	}
	return b.outbox.Append(ctx, tx, Event{Subject: "booking.created", Key: key, Payload: fmt.Append(nil, n)})
}

func (b *bed) appendN(n, keys int) {
	b.t.Helper()
	for i := range n {
		require.NoError(b.t, b.append(b.t.Context(), fmt.Sprintf("k%d", i%keys)))
	}
}

// effects is what the consumer recorded, by key, in order.
func (b *bed) effects() map[string][]string {
	b.t.Helper()
	rows, err := b.consumer.Pool().Query(context.Background(), "SELECT key, payload FROM effects ORDER BY effect_id")
	require.NoError(b.t, err)
	all := make(map[string][]string)
	var key, payload string
	_, err = pgx.ForEachRow(rows, []any{&key, &payload}, func() error {
		all[key] = append(all[key], payload)
		return nil
	})
	require.NoError(b.t, err)
	return all
}

func (b *bed) count(db *database.Database, table string) (n int) {
	b.t.Helper()
	err := db.Read(context.Background(), func(ctx context.Context) error {
		return db.Pool().QueryRow(ctx, "SELECT count(*) FROM "+pgx.Identifier{table}.Sanitize()).Scan(&n)
	})
	require.NoError(b.t, err)
	return n
}

// complete waits until all of the publisher's events have had their effect, and
// demands that each had it once and in the order of its key.
func (b *bed) complete() {
	b.t.Helper()
	want := b.counters()
	total := 0
	for _, n := range want {
		total += n
	}
	require.Eventually(b.t, func() bool { return b.count(b.consumer, "effects") >= total }, patience, 10*time.Millisecond, "events are missing")
	require.Eventually(b.t, func() bool { return b.count(b.publisher, "outbox") == 0 }, patience, 10*time.Millisecond, "the outbox is not emptied")
	got := b.effects()
	require.Len(b.t, got, len(want))
	for key, n := range want {
		require.Equal(b.t, sequence(n), got[key], "the events of %s", key)
	}
}

func (b *bed) counters() map[string]int {
	b.t.Helper()
	rows, err := b.publisher.Pool().Query(context.Background(), "SELECT key, n FROM counters")
	require.NoError(b.t, err)
	want := make(map[string]int)
	var key string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&key, &n}, func() error { want[key] = n; return nil })
	require.NoError(b.t, err)
	return want
}

func sequence(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprint(i + 1)
	}
	return list
}

// published is what the stream holds: key and payload, in order.
func (b *bed) published(js jetstream.JetStream) (list []string) {
	b.t.Helper()
	stream, err := js.Stream(b.t.Context(), b.stream.Name)
	require.NoError(b.t, err)
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		msg, err := stream.GetMsg(b.t.Context(), seq)
		require.NoError(b.t, err)
		list = append(list, msg.Header.Get(headerKey)+":"+string(msg.Data))
	}
	return list
}

func TestOnceAndInOrder(t *testing.T) {
	b := newBed(t)
	b.relay()
	b.run(b.newConsumer(record).Run)
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for range 40 {
				err := b.publisher.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
					// Some have a number of their own before they wait for the key's row.
					if rand.IntN(2) == 0 {
						if _, err := tx.Exec(ctx, "SELECT pg_current_xact_id()"); err != nil {
							return err
						}
					}
					return b.appendIn(ctx, tx, fmt.Sprintf("k%d", rand.IntN(5)))
				})
				assert.NoError(t, err)
			}
		})
	}
	writers.Wait()
	b.complete()
}

// TestRolledBack is what an outbox is for.
func TestRolledBack(t *testing.T) {
	b := newBed(t)
	b.relay()
	b.run(b.newConsumer(record).Run)
	err := b.publisher.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(b.appendIn(ctx, tx, "never"), errors.New("no"))
	})
	require.Error(t, err)
	b.appendN(3, 1)
	b.complete()
	require.NotContains(t, b.effects(), "never")
}

// hold begins a transaction that the test ends.
func (b *bed) hold() pgx.Tx {
	b.t.Helper()
	tx, err := b.publisher.Pool().Begin(b.t.Context())
	require.NoError(b.t, err)
	return tx
}

// byNumber is the relay that the trap is for: it remembers the last number it
// has seen.
type byNumber struct{ last int64 }

func (r *byNumber) read(ctx context.Context, db *database.Database) (list []string, err error) {
	rows, err := db.Pool().Query(ctx, "SELECT outbox_id, key || ':' || convert_from(payload, 'UTF8') FROM outbox WHERE outbox_id > $1 ORDER BY outbox_id", r.last)
	if err != nil {
		return nil, err
	}
	var text string
	_, err = pgx.ForEachRow(rows, []any{&r.last, &text}, func() error { list = append(list, text); return nil })
	return list, err
}

// TestLowerNumberCommitsLater has the relay that remembers a number lose what
// ours publishes.
func TestLowerNumberCommitsLater(t *testing.T) {
	b := newBed(t)
	naive := &byNumber{}
	first := b.hold()
	require.NoError(t, b.appendIn(t.Context(), first, "slow"))
	require.NoError(t, b.append(t.Context(), "fast"))

	seen, err := naive.read(t.Context(), b.publisher)
	require.NoError(t, err)
	require.Equal(t, []string{"fast:1"}, seen)
	b.relay()
	bus := b.bus()
	require.Eventually(t, func() bool { return b.count(b.publisher, "outbox") == 0 }, patience, 10*time.Millisecond)
	require.Equal(t, []string{"fast:1"}, b.published(bus.js), "a transaction under way holds nobody up")

	require.NoError(t, first.Commit(t.Context()))
	more, err := naive.read(t.Context(), b.publisher)
	require.NoError(t, err)
	require.Empty(t, more, "the naive relay would have to lose it, or this test shows nothing")
	require.Eventually(t, func() bool { return b.count(b.publisher, "outbox") == 0 }, patience, 10*time.Millisecond)
	require.Equal(t, []string{"fast:1", "slow:1"}, b.published(bus.js))
}

// TestLowerTransactionCommitsLater is the other half of the trap: the order of
// transactions, taken when all older ones have ended, loses nothing but turns
// events of one key around.
func TestLowerTransactionCommitsLater(t *testing.T) {
	b := newBed(t)
	ctx := t.Context()
	b.exec(b.publisher, "CREATE TABLE noise (n int)")
	b.exec(b.publisher, "ALTER TABLE outbox ADD xid xid8 NOT NULL DEFAULT pg_current_xact_id()")
	touch := func() pgx.Tx {
		tx := b.hold()
		_, err := tx.Exec(ctx, "INSERT INTO noise VALUES (1)")
		require.NoError(t, err)
		return tx
	}
	second, bystander, first := touch(), touch(), touch() // their numbers ascend
	require.NoError(t, b.appendIn(ctx, first, "k"))
	require.NoError(t, first.Commit(ctx))
	require.NoError(t, b.appendIn(ctx, second, "k"))
	require.NoError(t, second.Commit(ctx))

	rows, err := b.publisher.Pool().Query(ctx, `SELECT convert_from(payload, 'UTF8') FROM outbox
		WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, outbox_id`)
	require.NoError(t, err)
	byTransaction, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Equal(t, []string{"2"}, byTransaction, "it would publish the second before the first, or this test shows nothing")

	b.relay()
	bus := b.bus()
	require.Eventually(t, func() bool { return b.count(b.publisher, "outbox") == 0 }, patience, 10*time.Millisecond)
	require.Equal(t, []string{"k:1", "k:2"}, b.published(bus.js))
	require.NoError(t, bystander.Rollback(ctx))
}

// TestRelayDiesBeforeItDeletes publishes twice what NATS and the consumers then
// take once.
func TestRelayDiesBeforeItDeletes(t *testing.T) {
	for name, forgetful := range map[string]bool{"NatsRemembers": false, "NatsHasForgotten": true} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.appendN(20, 3)
			died := make(chan struct{})
			dying := NewRelay(b.publisher, b.bus(), b.stream)
			dying.published = func() error {
				close(died)
				return errors.New("the process is gone")
			}
			// Once: the process does not come back.
			conn, err := connect(t.Context(), b.publisher)
			require.NoError(t, err)
			require.ErrorContains(t, func() error {
				dying.stream, err = dying.stream.check()
				require.NoError(t, err)
				return dying.relay(t.Context(), conn)
			}(), "the process is gone")
			require.NoError(t, conn.Close(t.Context()))
			<-died
			bus := b.bus()
			require.Len(t, b.published(bus.js), 20)
			require.Equal(t, 20, b.count(b.publisher, "outbox"), "nothing is deleted yet")
			if forgetful {
				// What a window that has passed is to NATS.
				stream, err := bus.js.Stream(t.Context(), "ORDER")
				require.NoError(t, err)
				cfg := stream.CachedInfo().Config
				cfg.Duplicates = 100 * time.Millisecond
				_, err = bus.js.UpdateStream(t.Context(), cfg)
				require.NoError(t, err)
				require.Eventually(t, func() bool {
					msg, err := stream.GetMsg(t.Context(), 20)
					require.NoError(t, err)
					return time.Since(msg.Time) > 300*time.Millisecond
				}, patience, 10*time.Millisecond)
			}
			b.relay()
			b.run(b.newConsumer(record).Run)
			b.complete()
			require.Len(t, b.published(bus.js), 20, "nothing is in the stream twice")
		})
	}
}

// TestNoneOvertakes has an event lost on the way, behind which others are
// already: NATS has to refuse those.
func TestNoneOvertakes(t *testing.T) {
	b := newBed(t)
	bus := b.bus()
	relay := NewRelay(b.publisher, bus, b.stream)
	stream, err := b.stream.check()
	require.NoError(t, err)
	_, err = bus.ensure(t.Context(), stream)
	require.NoError(t, err)
	list := make([]outboxRow, 5)
	for i := range list {
		list[i].Event = Event{ID: fmt.Sprint("id", i), Subject: "booking.created", Key: "k", Payload: fmt.Append(nil, i), Time: time.Now()}
	}
	list[2].Subject = "nobody.listens"
	done, err := relay.publish(t.Context(), list)
	require.Error(t, err)
	require.Equal(t, 2, done)
	require.Equal(t, []string{"k:0", "k:1"}, b.published(bus.js))

	list[2].Subject = "booking.created"
	done, err = relay.publish(t.Context(), list[1:])
	require.NoError(t, err)
	require.Equal(t, 4, done)
	require.Equal(t, []string{"k:0", "k:1", "k:2", "k:3", "k:4"}, b.published(bus.js), "what is repeated is taken once")
}

// TestInbox has an event twice in the stream.
func TestInbox(t *testing.T) {
	b := newBed(t)
	bus := b.bus()
	stream, err := b.stream.check()
	require.NoError(t, err)
	_, err = bus.ensure(t.Context(), stream)
	require.NoError(t, err)
	cfg := jetstream.StreamConfig{Name: "TWIN", Subjects: []string{"twin.>"}}
	_, err = bus.js.CreateStream(t.Context(), cfg)
	require.NoError(t, err)
	row := outboxRow{Event: Event{ID: "01", Subject: "twin.made", Key: "k", Payload: []byte("1"), Time: time.Now()}}
	send := func() bool {
		msg := row.message()
		msg.Header.Set(jetstream.MsgIDHeader, row.ID)
		ack, err := bus.js.PublishMsg(t.Context(), msg)
		require.NoError(t, err)
		return !ack.Duplicate
	}
	require.True(t, send())
	cfg.Duplicates = 100 * time.Millisecond
	_, err = bus.js.UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
	require.Eventually(t, send, patience, 20*time.Millisecond, "NATS does not forget")
	got, err := bus.js.Stream(t.Context(), "TWIN")
	require.NoError(t, err)
	require.Equal(t, uint64(2), got.CachedInfo().State.Msgs, "NATS took it twice")

	c, err := NewConsumer(b.consumer, bus, ConsumerConfig{Stream: "TWIN", Name: "device", Subjects: []string{"twin.>"}, Handle: record})
	require.NoError(t, err)
	b.run(c.Run)
	require.Eventually(t, func() bool {
		info, err := got.Consumer(t.Context(), "device")
		return err == nil && info.CachedInfo().AckFloor.Stream == 2
	}, patience, 10*time.Millisecond)
	require.Equal(t, map[string][]string{"k": {"1"}}, b.effects())
}

func TestNATSAway(t *testing.T) {
	b := newBed(t)
	bus := b.bus()
	b.run(NewRelay(b.publisher, bus, b.stream).Run)
	b.run(b.newConsumer(record).Run)
	b.appendN(50, 5)
	b.nats.Kill()
	b.appendN(50, 5) // a publisher does not notice
	// But who watches does.
	registry := prometheus.NewRegistry()
	require.NoError(t, bus.metrics.register(registry))
	oldest := func() float64 {
		families, err := registry.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "outbox_oldest_seconds" {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		require.Fail(t, "the metric is not there")
		return 0
	}
	require.Eventually(t, func() bool { return oldest() > 3 }, patience, 100*time.Millisecond)
	b.nats.Restart()
	b.appendN(50, 5)
	b.complete()
	require.Eventually(t, func() bool { return oldest() == 0 }, patience, 100*time.Millisecond)
}

// TestNATSKilledUnderLoad kills it at moments that are not chosen.
func TestNATSKilledUnderLoad(t *testing.T) {
	b := newBed(t)
	b.relay()
	b.run(b.newConsumer(record).Run)
	var stop atomic.Bool
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := 0; !stop.Load(); i++ {
				assert.NoError(t, b.append(t.Context(), fmt.Sprintf("k%d", (w+i)%7)))
			}
		})
	}
	for n := range 3 {
		wanted := 300 * (n + 1)
		require.Eventually(t, func() bool { return b.count(b.consumer, "effects") >= wanted }, patience, 5*time.Millisecond)
		b.nats.Kill()
		b.nats.Restart()
	}
	stop.Store(true)
	writers.Wait()
	b.complete()
}

// cut ends all connections to a database but this one.
func (b *bed) cut(db *database.Database) {
	b.t.Helper()
	conn, err := connect(b.t.Context(), db)
	require.NoError(b.t, err)
	defer conn.Close(b.t.Context())
	_, err = conn.Exec(b.t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	require.NoError(b.t, err)
}

func TestDatabaseCut(t *testing.T) {
	b := newBed(t)
	b.relay()
	b.run(b.newConsumer(record).Run)
	for n := range 4 {
		b.appendN(100, 5)
		require.Eventually(t, func() bool { return b.count(b.consumer, "effects") >= n*100+10 }, patience, time.Millisecond)
		b.cut(b.publisher)
		b.cut(b.consumer)
		// What the pool has not noticed yet is the writer's to repeat.
		require.Eventually(t, func() bool { return b.publisher.Ping(t.Context()) == nil }, patience, 10*time.Millisecond)
	}
	b.complete()
}

func TestDatabaseAway(t *testing.T) {
	server := pgtest.Start(t)
	b := newBedOn(t, server, natstest.Start(t))
	b.relay()
	c := b.newConsumer(record)
	b.run(c.Run)
	b.appendN(200, 5)
	server.Stop(t)
	away := time.NewTimer(2 * time.Second)
	<-away.C
	server.Restart(t)
	require.Eventually(t, func() bool { return b.publisher.Ping(t.Context()) == nil && b.consumer.Ping(t.Context()) == nil }, patience, 50*time.Millisecond)
	b.complete()
	letters, err := c.DeadLetters(t.Context(), "", 10)
	require.NoError(t, err)
	require.Empty(t, letters)
}

// TestUnavailable has the database unavailable to an event, more often than
// there are attempts: for a while that is borne.
func TestUnavailable(t *testing.T) {
	for name, borne := range map[string]bool{"ForAWhile": true, "ForTooLong": false} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.relay()
			var calls atomic.Int64
			c := b.newConsumer(func(ctx context.Context, tx pgx.Tx, e Event) error {
				if calls.Add(1) < 6 {
					return database.ErrUnavailable
				}
				return record(ctx, tx, e)
			})
			if !borne {
				c.bearable = 0
			}
			b.run(c.Run)
			b.appendN(1, 1)
			if borne {
				b.complete()
			}
			var letters []DeadLetter
			require.Eventually(t, func() bool {
				var err error
				letters, err = c.DeadLetters(t.Context(), "", 10)
				require.NoError(t, err)
				return borne || len(letters) == 1
			}, patience, 10*time.Millisecond)
			require.Equal(t, borne, len(letters) == 0)
		})
	}
}

// TestSetAside has one event that cannot be handled, until its replay.
func TestSetAside(t *testing.T) {
	for name, c := range map[string]struct {
		failure  func() error
		attempts int
		text     string
	}{
		"AfterAttempts": {func() error { return errors.New("there is no such venue") }, 3, "there is no such venue"},
		"Permanent":     {func() error { return Permanent(errors.New("not a booking")) }, 1, "not a booking"},
		"Panic":         {func() error { panic("no such screen") }, 3, "no such screen"},
		"NotText":       {func() error { return Permanent(errors.New("a\x00b\xff")) }, 1, "a\uFFFDb\uFFFD"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.relay()
			var healed atomic.Bool
			consumer := b.newConsumer(func(ctx context.Context, tx pgx.Tx, e Event) error {
				if err := record(ctx, tx, e); err != nil {
					return err
				}
				if e.Key == "poison" && string(e.Payload) == "1" && !healed.Load() {
					return c.failure()
				}
				return nil
			})
			stop := b.run(consumer.Run)
			require.NoError(t, b.append(t.Context(), "poison"))
			b.appendN(30, 3)
			require.NoError(t, b.append(t.Context(), "poison"))

			var letters []DeadLetter
			require.Eventually(t, func() bool {
				var err error
				letters, err = consumer.DeadLetters(t.Context(), "", 10)
				require.NoError(t, err)
				return len(letters) == 1 && b.count(b.consumer, "effects") == 31
			}, patience, 10*time.Millisecond)
			letter := letters[0]
			require.Equal(t, "poison", letter.Key)
			require.Equal(t, "booking.created", letter.Subject)
			require.Equal(t, "device", letter.Consumer)
			require.Equal(t, []byte("1"), letter.Payload)
			require.Equal(t, c.attempts, letter.Attempts)
			require.Contains(t, letter.Error, c.text)
			require.WithinDuration(t, time.Now(), letter.EventTime, time.Minute)
			require.Equal(t, []string{"2"}, b.effects()["poison"], "what it did before it failed is undone, later ones go on")

			// It is acknowledged: a new turn does not meet it again.
			stop()
			b.run(consumer.Run)
			b.appendN(1, 1)
			require.Eventually(t, func() bool { return b.count(b.consumer, "effects") == 32 }, patience, 10*time.Millisecond)

			require.ErrorContains(t, consumer.Replay(t.Context(), letter.ID), strings.Trim(c.text, "\uFFFDab"))
			letters, err := consumer.DeadLetters(t.Context(), "", 10)
			require.NoError(t, err)
			require.Len(t, letters, 1)
			require.Equal(t, c.attempts+1, letters[0].Attempts)

			healed.Store(true)
			require.NoError(t, consumer.Replay(t.Context(), letter.ID))
			require.Equal(t, []string{"2", "1"}, b.effects()["poison"])
			letters, err = consumer.DeadLetters(t.Context(), "", 10)
			require.NoError(t, err)
			require.Empty(t, letters)
			require.ErrorIs(t, consumer.Replay(t.Context(), letter.ID), ErrNoDeadLetter)
			require.ErrorIs(t, consumer.Discard(t.Context(), letter.ID), ErrNoDeadLetter)
		})
	}
}

// TestForeign has a message in the stream that no outbox sent.
func TestForeign(t *testing.T) {
	b := newBed(t)
	stopRelay := b.relay()
	b.appendN(1, 1)
	require.Eventually(t, func() bool { return b.count(b.publisher, "outbox") == 0 }, patience, 10*time.Millisecond)
	stopRelay()
	_, err := b.bus().js.Publish(t.Context(), "booking.forged", []byte("?"))
	require.NoError(t, err)
	b.relay()
	b.appendN(1, 1)
	consumer := b.newConsumer(record)
	b.run(consumer.Run)
	b.complete()
	letters, err := consumer.DeadLetters(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, "ORDER-2", letters[0].ID)
	require.Contains(t, letters[0].Error, "not from an outbox")
	require.NoError(t, consumer.Discard(t.Context(), "ORDER-2"))
}

// TestSuccession has two instances of each: one works, and when its connection
// ends the other does.
func TestSuccession(t *testing.T) {
	b := newBed(t)
	var by [2]atomic.Int64
	stops := make([]func(), 2)
	for i := range stops {
		stopRelay := b.relay()
		stopConsumer := b.run(b.newConsumer(func(ctx context.Context, tx pgx.Tx, e Event) error {
			by[i].Add(1)
			return record(ctx, tx, e)
		}).Run)
		stops[i] = func() { stopRelay(); stopConsumer() }
		if i == 0 {
			b.appendN(100, 5)
			b.complete()
		}
	}
	b.appendN(100, 5)
	b.complete()
	require.EqualValues(t, 200, by[0].Load())
	require.Zero(t, by[1].Load(), "two work at the same time")
	stops[0]()
	b.appendN(100, 5)
	b.complete()
	require.EqualValues(t, 100, by[1].Load())
}

// TestRivals changes the one that works again and again, under load.
func TestRivals(t *testing.T) {
	b := newBed(t)
	for range 3 {
		b.relay()
		b.run(b.newConsumer(record).Run)
	}
	var writers sync.WaitGroup
	writers.Go(func() {
		for i := range 600 {
			for b.append(t.Context(), fmt.Sprintf("k%d", i%7)) != nil && t.Context().Err() == nil {
				continue // cut off below
			}
		}
	})
	for range 5 {
		n := b.count(b.consumer, "effects")
		require.Eventually(t, func() bool { return b.count(b.consumer, "effects") > n+20 || b.count(b.consumer, "effects") >= 600 }, patience, time.Millisecond)
		b.endHolders(b.publisher)
		b.endHolders(b.consumer)
	}
	writers.Wait()
	b.complete()
}

// TestDeliveredElsewhere has NATS give the last event to a consumer whose turn is over:
// it comes again, and long before NATS gives up waiting for that one.
func TestDeliveredElsewhere(t *testing.T) {
	b := newBed(t)
	b.relay()
	c := b.newConsumer(record)
	b.run(c.Run)
	b.appendN(5, 5)
	b.complete()
	before, err := c.bus.js.Consumer(t.Context(), "ORDER", "device")
	require.NoError(t, err)
	messages, err := before.Messages(jetstream.PullMaxMessages(1))
	require.NoError(t, err)
	taken := make(chan error, 1)
	go func() {
		_, err := messages.Next()
		messages.Stop()
		taken <- err
	}()
	for want := 6; ; want++ {
		b.appendN(1, 1)
		require.Eventually(t, func() bool { return len(taken) > 0 || b.count(b.consumer, "effects") == want }, patience, time.Millisecond)
		if len(taken) > 0 {
			require.NoError(t, <-taken)
			break
		}
	}
	began := time.Now()
	b.complete()
	require.Less(t, time.Since(began), ackWait/2)
}

// endHolders ends the connections that hold the advisory locks.
func (b *bed) endHolders(db *database.Database) {
	b.t.Helper()
	require.NoError(b.t, db.Call(b.t.Context(), func(ctx context.Context) error {
		_, err := db.Pool().Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_locks
			WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
		return err
	}))
}

// TestThreeServers loses each server of a cluster in turn.
func TestThreeServers(t *testing.T) {
	servers := natstest.Cluster(t, 3)
	b := newBedOn(t, &pg, servers[0])
	b.stream.Replicas = 3
	var next atomic.Int64
	open := func() *Bus {
		bus, err := Connect(Config{Name: "test", Log: b.log(), Dial: dialAny(servers, &next)})
		require.NoError(t, err)
		t.Cleanup(bus.Close)
		return bus
	}
	asking := open()
	b.run(NewRelay(b.publisher, open(), b.stream).Run)
	c, err := NewConsumer(b.consumer, open(), ConsumerConfig{Stream: "ORDER", Name: "device", Subjects: []string{"booking.>"}, Handle: record})
	require.NoError(t, err)
	b.run(c.Run)
	for _, s := range servers {
		b.appendN(100, 5)
		s.Kill()
		b.appendN(100, 5)
		b.complete()
		s.Restart()
		// A server that was killed may have lost the end of a log; NATS chooses no
		// leader with its vote until it has what the others know.
		require.Eventually(t, func() bool { return replicated(t.Context(), asking) }, patience, 100*time.Millisecond, "the server does not catch up")
	}
	b.appendN(100, 5)
	b.complete()
}

// TestMoreReplicas has a relay of a new version ask for three where there was one:
// what was published before is on all servers then, too.
func TestMoreReplicas(t *testing.T) {
	servers := natstest.Cluster(t, 3)
	b := newBedOn(t, &pg, servers[0])
	var next atomic.Int64
	open := func() *Bus {
		bus, err := Connect(Config{Name: "test", Log: b.log(), Dial: dialAny(servers, &next)})
		require.NoError(t, err)
		t.Cleanup(bus.Close)
		return bus
	}
	asking := open()
	c, err := NewConsumer(b.consumer, open(), ConsumerConfig{Stream: "ORDER", Name: "device", Subjects: []string{"booking.>"}, Handle: record})
	require.NoError(t, err)
	for _, replicas := range []int{1, 3} {
		b.stream.Replicas = replicas
		stop := b.run(NewRelay(b.publisher, open(), b.stream).Run)
		if replicas == 1 {
			b.run(c.Run)
		}
		b.appendN(100, 5)
		b.complete()
		if replicas == 1 {
			require.False(t, replicated(t.Context(), asking), "one replica is all there is, or this test shows nothing")
			stop()
		}
	}
	require.Eventually(t, func() bool { return replicated(t.Context(), asking) }, patience, 100*time.Millisecond, "the stream does not get more replicas")
	servers[0].Kill()
	b.appendN(100, 5)
	b.complete()
}

// replicated says whether every server has all of the stream and its consumer.
func replicated(ctx context.Context, bus *Bus) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	stream, err := bus.js.Stream(ctx, "ORDER")
	if err != nil {
		return false
	}
	consumer, err := stream.Consumer(ctx, "device")
	if err != nil {
		return false
	}
	for _, group := range []*jetstream.ClusterInfo{stream.CachedInfo().Cluster, consumer.CachedInfo().Cluster} {
		if group == nil || group.Leader == "" || len(group.Replicas) != 2 ||
			slices.ContainsFunc(group.Replicas, func(p *jetstream.PeerInfo) bool { return !p.Current || p.Offline }) {
			return false
		}
	}
	return true
}

// dialAny connects to the next server that is there, as the mesh does.
func dialAny(servers []*natstest.Server, next *atomic.Int64) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var why error
		for range servers {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", servers[int(next.Add(1))%len(servers)].Address)
			if err == nil {
				return conn, nil
			}
			why = errors.Join(why, err)
		}
		return nil, why
	}
}

func TestPrune(t *testing.T) {
	b := newBed(t)
	b.relay()
	consumer := b.newConsumer(func(ctx context.Context, tx pgx.Tx, e Event) error {
		if e.Key == "stuck" {
			return database.ErrUnavailable
		}
		return record(ctx, tx, e)
	})
	consumer.cfg.Attempts = 1 << 30
	b.run(consumer.Run)
	b.appendN(10, 2)
	require.NoError(t, b.append(t.Context(), "stuck"))
	b.appendN(10, 2)
	require.Eventually(t, func() bool { return b.count(b.consumer, "inbox") == 20 }, patience, 10*time.Millisecond)
	stream, err := consumer.bus.js.Stream(t.Context(), "ORDER")
	require.NoError(t, err)
	inNATS, err := stream.Consumer(t.Context(), "device")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		info, err := inNATS.Info(t.Context())
		return err == nil && info.AckFloor.Stream == 10
	}, patience, 10*time.Millisecond)

	require.NoError(t, consumer.prune(t.Context(), inNATS, time.Now()))
	require.Equal(t, 20, b.count(b.consumer, "inbox"), "too young")
	require.NoError(t, consumer.prune(t.Context(), inNATS, time.Now().Add(remember+time.Minute)))
	require.Equal(t, 10, b.count(b.consumer, "inbox"), "what is behind an unacknowledged one comes again in a new turn")
	require.NoError(t, consumer.prune(t.Context(), inNATS, time.Now().Add(remember+defaultMaxAge+time.Minute)))
	require.Zero(t, b.count(b.consumer, "inbox"))
}

func TestAppendRefuses(t *testing.T) {
	b := newBed(t)
	good := Event{Subject: "booking.created", Key: "k"}
	for name, c := range map[string]struct {
		edit func(*Event)
		text string
	}{
		"NoSubject":      {func(e *Event) { e.Subject = "" }, "its subject must be"},
		"Wildcard":       {func(e *Event) { e.Subject = "booking.*" }, "its subject must be"},
		"LongSubject":    {func(e *Event) { e.Subject = "booking." + strings.Repeat("x", 200) }, "its subject must be"},
		"AnotherStream":  {func(e *Event) { e.Subject = "device.status" }, "not in stream ORDER"},
		"NoKey":          {func(e *Event) { e.Key = "" }, "its key"},
		"KeyWithNewline": {func(e *Event) { e.Key = "a\r\nNats-Msg-Id: b" }, "its key"},
		"LongKey":        {func(e *Event) { e.Key = strings.Repeat("x", 257) }, "its key"},
		"LargePayload":   {func(e *Event) { e.Payload = make([]byte, MaxPayload+1) }, "its payload has 65537 bytes"},
		"OwnID":          {func(e *Event) { e.ID = "01" }, "Append's to set"},
	} {
		t.Run(name, func(t *testing.T) {
			e := good
			c.edit(&e)
			tx := b.hold()
			defer tx.Rollback(t.Context())
			require.ErrorContains(t, b.outbox.Append(t.Context(), tx, good, e), c.text)
		})
	}
	tx := b.hold()
	largest := good
	largest.Payload = make([]byte, MaxPayload)
	require.NoError(t, b.outbox.Append(t.Context(), tx, good, largest))
	require.NoError(t, tx.Commit(t.Context()))
	b.relay()
	require.Eventually(t, func() bool { return b.count(b.publisher, "outbox") == 0 }, patience, 10*time.Millisecond)
}

func TestConfigurationIsChecked(t *testing.T) {
	for text, s := range map[string]Stream{
		"must be 1 to 63 capitals": {Name: "order", Subjects: []string{"a"}},
		"it has no subjects":       {Name: "ORDER"},
		`the subject "a..b"`:       {Name: "ORDER", Subjects: []string{"a..b"}},
		`the subject ">.a"`:        {Name: "ORDER", Subjects: []string{">.a"}},
		"2 replicas":               {Name: "ORDER", Subjects: []string{"a"}, Replicas: 2},
		"cannot be kept for 1s":    {Name: "ORDER", Subjects: []string{"a"}, MaxAge: time.Second},
		"-1 bytes is negative":     {Name: "ORDER", Subjects: []string{"a"}, MaxBytes: -1},
	} {
		_, err := NewOutbox(s)
		require.ErrorContains(t, err, text)
	}
	for text, c := range map[string]ConsumerConfig{
		"the stream's name":     {},
		"the consumer's name":   {Stream: "ORDER", Name: "Device"},
		"it has no subjects":    {Stream: "ORDER", Name: "device"},
		"Handle is missing":     {Stream: "ORDER", Name: "device", Subjects: []string{"a"}},
		"Workers, Attempts and": {Stream: "ORDER", Name: "device", Subjects: []string{"a"}, Handle: record, Workers: -1},
	} {
		_, err := NewConsumer(nil, nil, c)
		require.ErrorContains(t, err, text)
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a.b", "a.b", true}, {"a.b", "a", false}, {"a", "a.b", false},
		{"a.*", "a.b", true}, {"a.*", "a.b.c", false}, {"*.b", "a.b", true}, {"*", "a.b", false},
		{"a.>", "a.b", true}, {"a.>", "a.b.c", true}, {"a.>", "a", false}, {"a.>", "b.c", false},
	} {
		require.Equal(t, c.want, matches(c.pattern, c.subject), "%s %s", c.pattern, c.subject)
	}
}

// settings is how a service embeds the flags.
type settings struct {
	service.Config
	NATS Flags `embed:"" prefix:"nats-"`
}

func (s *settings) Validate() error { return s.NATS.Check(&s.Config) }

func TestFlags(t *testing.T) {
	parse := func(args ...string) (settings, error) { return service.Parse[settings]("billing", args, io.Discard) }
	cfg, err := parse("--nats-password-file=secret")
	require.NoError(t, err)
	require.Equal(t, "nats", cfg.NATS.Service)
	require.Equal(t, "billing", cfg.NATS.User)
	require.Equal(t, 1, cfg.NATS.Replicas)
	production := []string{"--mode=production", "--environment=eu", "--nats-password-file=secret"}
	_, err = parse(append(production, "--nats-address=127.0.0.1:4222")...)
	require.NoError(t, err)
	for name, c := range map[string]struct{ args, text string }{
		"NoPassword":  {"", "--nats-password-file: is needed"},
		"NoAddress":   {"--nats-address=nats", `--nats-address: "nats" is no address`},
		"Replicas":    {"--nats-password-file=secret --nats-replicas=2", "--nats-replicas: 2 is not offered"},
		"Unencrypted": {"--mode=production --environment=eu --nats-address=nats.example:4222", "nats.example:4222 would be spoken to without encryption"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(strings.Fields(c.args)...)
			require.ErrorContains(t, err, c.text)
		})
	}
}

// TestThroughput prints what one relay and one consumer do on this machine.
func TestThroughput(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; run without -short")
	}
	const events, keys = 10_000, 500
	b := newBed(t)
	began := time.Now()
	for i := 0; i < events; i += 100 {
		list := make([]Event, 100)
		for j := range list {
			list[j] = Event{Subject: "booking.created", Key: fmt.Sprintf("k%d", (i+j)%keys), Payload: fmt.Append(nil, (i+j)/keys+1)}
		}
		require.NoError(t, b.publisher.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
			return b.outbox.Append(ctx, tx, list...)
		}))
	}
	appended := time.Since(began)
	began = time.Now()
	b.relay()
	require.Eventually(t, func() bool { return b.count(b.publisher, "outbox") == 0 }, 2*time.Minute, time.Millisecond)
	relayed := time.Since(began)
	began = time.Now()
	b.run(b.newConsumer(record).Run)
	require.Eventually(t, func() bool { return b.count(b.consumer, "effects") == events }, 2*time.Minute, 5*time.Millisecond)
	handled := time.Since(began)
	for key, got := range b.effects() {
		require.Equal(t, sequence(events/keys), got, key)
	}
	t.Logf("%d events, 100 a transaction: appended %s, relayed %s, handled (a transaction each, %d at a time) %s",
		events, perSecond(events, appended), perSecond(events, relayed), defaultWorkers, perSecond(events, handled))

	// One after another, from before the transaction to after the effect's.
	var waited []time.Duration
	for i := range 100 {
		began := time.Now()
		require.NoError(t, b.append(t.Context(), "latency"))
		require.Eventually(t, func() bool { return b.count(b.consumer, "effects") == events+i+1 }, patience, 500*time.Microsecond)
		waited = append(waited, time.Since(began))
	}
	slices.Sort(waited)
	t.Logf("one event at a time, from append to effect: median %s, 99th percentile %s", waited[50].Round(100*time.Microsecond), waited[98].Round(100*time.Microsecond))
}

func perSecond(n int, d time.Duration) string { return fmt.Sprintf("%.0f/s", float64(n)/d.Seconds()) }
