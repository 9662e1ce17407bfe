package device_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/platform/throttle"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/postgrestest"
)

var pg pgtest.Server

func TestMain(m *testing.M) { os.Exit(pg.Main(m)) }

const organisation = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"

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

func settings() device.Settings {
	return device.Settings{
		Name: "one", VenueType: "retail.malls", Screen: device.Screen{Width: 1, Height: 1}, LoopLength: time.Minute, SlotLength: 10 * time.Second,
		SlotPrice: device.Price{Currency: "EUR"}, TimeZone: "UTC",
	}
}

func TestClaimThrottle(t *testing.T) {
	store, _ := postgrestest.New(t, &pg)
	now := &clock{at: time.Now()}
	limits := device.Throttle{Address: throttle.Budget{Burst: 3, Every: time.Minute}, All: throttle.Budget{Burst: 6, Every: time.Second}}
	s := device.New(store, limits, now.now, rand.Reader)
	made, err := s.Create(t.Context(), "acc_1", "request-1", organisation, settings())
	require.NoError(t, err)
	code, expires, err := s.CreateClaimCode(t.Context(), organisation, made.ID)
	require.NoError(t, err)
	require.Equal(t, now.now().Add(device.ClaimCodeLifetime).Truncate(time.Microsecond).UTC(), expires)
	guess := func(address string) error {
		_, err := s.Claim(t.Context(), "22222222", address)
		return err
	}
	retry := func(err error) time.Duration {
		t.Helper()
		require.ErrorIs(t, err, device.ErrClaimsThrottled)
		f, _ := fault.From(err)
		return f.RetryAfter
	}
	for range 3 {
		require.ErrorIs(t, guess("192.0.2.1"), device.ErrClaimCodeInvalid)
	}
	require.Equal(t, time.Minute, retry(guess("192.0.2.1")))
	// The right code does not get through either: guesses would.
	_, err = s.Claim(t.Context(), code, "192.0.2.1")
	require.Equal(t, time.Minute, retry(err))
	require.ErrorIs(t, guess("2001:db8::1"), device.ErrClaimCodeInvalid, "another address has its own budget")
	require.ErrorIs(t, guess("2001:db8::2"), device.ErrClaimCodeInvalid)
	require.ErrorIs(t, guess("2001:db8:0:0:ffff::"), device.ErrClaimCodeInvalid)
	// All together have used six.
	require.Equal(t, time.Second, retry(guess("198.51.100.1")))
	require.Equal(t, time.Second, retry(guess("")))
	now.forward(time.Second)
	require.ErrorIs(t, guess(""), device.ErrClaimCodeInvalid)
	now.forward(6 * time.Second)
	require.Positive(t, retry(guess("2001:db8::3")), "one network is one address")
	now.forward(time.Minute)

	credentials, err := s.Claim(t.Context(), code, "192.0.2.1")
	require.NoError(t, err)
	require.Equal(t, made.ID, credentials.DeviceID)

	t.Run("Expired", func(t *testing.T) {
		code, _, err := s.CreateClaimCode(t.Context(), organisation, made.ID)
		require.NoError(t, err)
		now.forward(device.ClaimCodeLifetime)
		_, err = s.Claim(t.Context(), code, "")
		require.ErrorIs(t, err, device.ErrClaimCodeInvalid)
	})
}

// TestClaimMeetsDeletion has a player claim a device that somebody deletes at that
// moment: it waits, and is refused.
func TestClaimMeetsDeletion(t *testing.T) {
	store, db := postgrestest.New(t, &pg)
	s := device.New(store, device.DefaultThrottle(), time.Now, rand.Reader)
	made, err := s.Create(t.Context(), "acc_1", "request-1", organisation, settings())
	require.NoError(t, err)
	code, _, err := s.CreateClaimCode(t.Context(), organisation, made.ID)
	require.NoError(t, err)

	// What DeleteDevice does, in two steps.
	tx, err := db.Pool().Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), "UPDATE devices SET delete_time = now(), secret_hash = NULL WHERE device_id = $1", made.ID)
	require.NoError(t, err)
	claimed := make(chan error, 1)
	go func() {
		_, err := s.Claim(t.Context(), code, "")
		claimed <- err
	}()
	require.Eventually(t, func() bool {
		var waits bool
		err := db.Pool().QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database())").Scan(&waits)
		return err == nil && waits
	}, 5*time.Second, 5*time.Millisecond, "the claim does not wait for the deletion")
	_, err = tx.Exec(t.Context(), "DELETE FROM claim_codes WHERE device_id = $1", made.ID)
	require.NoError(t, err, "each waits for the other")
	require.NoError(t, tx.Commit(t.Context()))
	require.ErrorIs(t, <-claimed, device.ErrClaimCodeInvalid)
}

// TestSweep has plays and rejected plays of many days.
func TestSweep(t *testing.T) {
	store, db := postgrestest.New(t, &pg)
	partitions := func() (names []string) {
		require.NoError(t, db.Pool().QueryRow(t.Context(),
			"SELECT array_agg(inhrelid::regclass::text ORDER BY inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'plays'::regclass").Scan(&names))
		return names
	}
	// When the service began here; the days since have been added as they came.
	began := time.Now()
	name := func(at time.Time) string { return "plays_" + at.UTC().Format("20060102") }
	require.Equal(t, name(began.Add(-31*24*time.Hour)), partitions()[0])
	now := began.Add(10 * 24 * time.Hour)
	require.NoError(t, store.AddPlayPartitions(t.Context(), now))
	before := len(partitions())
	_, err := db.Pool().Exec(t.Context(), `INSERT INTO plays (device_id, play_id, creative_id, start_time, duration_ms, counted, receive_time)
		SELECT 'dev', n::text, 'c', $1::timestamptz + n * interval '1 day', 1, true, now() FROM generate_series(-31, 10) AS n`, began)
	require.NoError(t, err)
	// More than one batch of what was rejected too long ago, and what was not.
	_, err = db.Pool().Exec(t.Context(), `INSERT INTO rejected_plays (device_id, play_id, reason, play, receive_time)
		SELECT 'dev', n::text, 'TOO_OLD', '', $1::timestamptz - interval '1 minute' FROM generate_series(1, 12000) AS n
		UNION ALL SELECT 'dev', 'kept', 'TOO_OLD', '', $1::timestamptz + interval '1 minute'`, now.Add(-device.RejectedKept))
	require.NoError(t, err)

	removed, err := store.Sweep(t.Context(), now)
	require.NoError(t, err)
	kept := partitions()
	require.Equal(t, name(now.Add(-32*24*time.Hour)), kept[0], "plays are taken for 30 days")
	require.Equal(t, name(now.Add(2*24*time.Hour)), kept[len(kept)-1])
	require.Len(t, kept, before-9)
	require.EqualValues(t, 9+12000, removed)
	var plays, rejected int
	require.NoError(t, db.Pool().QueryRow(t.Context(), "SELECT (SELECT count(*) FROM plays), (SELECT count(*) FROM rejected_plays)").Scan(&plays, &rejected))
	require.Equal(t, 42-9, plays)
	require.Equal(t, 1, rejected)
	again, err := store.Sweep(t.Context(), now)
	require.NoError(t, err)
	require.Zero(t, again)

	t.Run("Busy", func(t *testing.T) {
		// While somebody reads plays for long, nobody waits for the sweep for long.
		tx, err := db.Pool().Begin(t.Context())
		require.NoError(t, err)
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
		_, err = tx.Exec(t.Context(), "SELECT count(*) FROM plays")
		require.NoError(t, err)
		removed, err := store.Sweep(t.Context(), now.Add(24*time.Hour))
		require.Error(t, err)
		require.EqualValues(t, 1, removed, "the play that was rejected later")
		require.Equal(t, kept, partitions())
		require.NoError(t, tx.Rollback(t.Context()))
		removed, err = store.Sweep(t.Context(), now.Add(24*time.Hour))
		require.NoError(t, err)
		require.EqualValues(t, 1, removed, "a partition")
	})
}

func TestVenueType(t *testing.T) {
	for text, want := range map[string]bool{
		"transit": true, "transit.airports": true, "transit.airports.gates": true, "office_buildings": true, "outdoor.billboards.roadside": true,
		"health_beauty.gyms.lobby": true, "": false, "transit.": false, "airports": false, "transit.airports.gates.7": false, "Transit": false,
	} {
		require.Equal(t, want, device.VenueType(text), text)
	}
}

// FuzzParseBatch: whatever a player sends is a batch, of what Postgres can store.
func FuzzParseBatch(f *testing.F) {
	f.Add([]byte(`{"batch_id":"b","plays":[{"id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","creative_id":"c","duration_ms":1}]}`))
	f.Add([]byte(`{"plays":[{"id":"\u0000\ud800","creative_id":7}]}`))
	f.Add([]byte("\xff"))
	f.Add([]byte(`{"plays":[` + strings.Repeat("[", 5000) + "]}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b := device.ParseBatch("dev_1", text)
		require.NotZero(t, len(b.Plays)+len(b.Rejected))
		require.LessOrEqual(t, len(b.Plays)+len(b.Rejected), device.MaxBatch)
		for _, p := range b.Plays {
			id, err := ulid.ParseStrict(p.ID)
			require.NoError(t, err)
			require.Equal(t, id.String(), p.ID)
			require.Equal(t, id.Timestamp().UTC(), p.Start)
			require.Positive(t, p.Duration)
		}
		for _, r := range b.Rejected {
			for _, stored := range []string{r.PlayID, r.Text, b.ID} {
				require.True(t, utf8.ValidString(stored) && !strings.Contains(stored, "\x00"), "Postgres does not store %q", stored)
				require.LessOrEqual(t, len(stored), 1000)
			}
		}
	})
}

// silent is a session of a player that says nothing.
type silent struct {
	id, device string
	mu         sync.Mutex
	sent       []string
	end        device.EndReason
}

func (s *silent) ID() string       { return s.id }
func (s *silent) DeviceID() string { return s.device }
func (s *silent) Send(_ string, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, string(payload))
	return nil
}

func (s *silent) End(reason device.EndReason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end = reason
}

func (s *silent) ended() device.EndReason {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end
}

// TestManyBatches has many players hand in overlapping batches at once, over and
// over, at two instances: the sums are those of the distinct plays.
func TestManyBatches(t *testing.T) {
	store, db := postgrestest.New(t, &pg)
	s := device.New(store, device.DefaultThrottle(), time.Now, rand.Reader)
	const devices, batches, size = 6, 10, 20
	ctx, cancel := context.WithCancel(t.Context())
	var planes []*device.Plane
	var running sync.WaitGroup
	for n := range 2 {
		p := device.NewPlane(store, fmt.Sprint("instance-", n), time.Now, hclog.NewNullLogger())
		planes = append(planes, p)
		running.Go(func() { _ = p.Run(ctx) })
	}
	t.Cleanup(func() { cancel(); running.Wait() })

	base := time.Now().Truncate(time.Minute)
	errs := make(chan error, devices*4)
	var players sync.WaitGroup
	for n := range devices {
		made, err := s.Create(t.Context(), "acc_1", fmt.Sprint("request-", n), organisation, settings())
		require.NoError(t, err)
		_, err = s.PutPlaylist(t.Context(), organisation, made.ID, []device.Item{{CreativeID: "c", DurationMS: 10000}})
		require.NoError(t, err)
		var payloads [][]byte
		for b := range batches {
			var plays []string
			for p := range size {
				// Each batch has half of the one before it.
				at := base.Add(-time.Duration(b*size/2+p) * time.Minute)
				id := ulid.ULID{}
				require.NoError(t, id.SetTime(ulid.Timestamp(at)))
				plays = append(plays, fmt.Sprintf(`{"id":%q,"creative_id":"c","duration_ms":10000}`, id))
			}
			payloads = append(payloads, fmt.Appendf(nil, `{"plays":[%s]}`, strings.Join(plays, ",")))
		}
		for k := range 4 {
			session := &silent{id: fmt.Sprint(k), device: made.ID}
			players.Go(func() {
				for b := range payloads {
					// In another order each.
					if err := planes[k%2].Received(t.Context(), session, device.ChannelPlays, payloads[(b*3+k)%batches]); err != nil {
						errs <- err
						return
					}
				}
			})
		}
	}
	players.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	var plays, summed, counted int64
	require.NoError(t, db.Pool().QueryRow(t.Context(), "SELECT count(*) FROM plays").Scan(&plays))
	require.NoError(t, db.Pool().QueryRow(t.Context(), "SELECT sum(plays), sum(counted) FROM plays_hourly").Scan(&summed, &counted))
	require.EqualValues(t, plays, summed)
	require.EqualValues(t, plays, counted)
	// 20 of the first batch, and 10 more of each other.
	require.EqualValues(t, devices*(size+(batches-1)*size/2), plays)
	span := device.Span{From: time.Now().Add(-24 * time.Hour).Truncate(time.Hour), To: time.Now().Add(time.Hour).Truncate(time.Hour)}
	wrong, err := store.Disagreements(t.Context(), span, 10)
	require.NoError(t, err)
	require.Empty(t, wrong)

	t.Run("DisagreementsAreFound", func(t *testing.T) {
		_, err := db.Pool().Exec(t.Context(), "UPDATE plays_hourly SET plays = plays + 1 WHERE ctid = (SELECT ctid FROM plays_hourly LIMIT 1)")
		require.NoError(t, err)
		_, err = db.Pool().Exec(t.Context(), "DELETE FROM plays_hourly WHERE ctid = (SELECT ctid FROM plays_hourly ORDER BY plays LIMIT 1)")
		require.NoError(t, err)
		wrong, err := store.Disagreements(t.Context(), span, 10)
		require.NoError(t, err)
		require.Len(t, wrong, 2)
	})
}

// TestOutage stops the database under players: nothing is acknowledged that is not
// stored, what waits is stored when it is back, and presence is right again.
func TestOutage(t *testing.T) {
	own := pgtest.Start(t)
	store, db := postgrestest.New(t, own)
	s := device.New(store, device.DefaultThrottle(), time.Now, rand.Reader)
	made, err := s.Create(t.Context(), "acc_1", "request-1", organisation, settings())
	require.NoError(t, err)
	_, err = s.PutPlaylist(t.Context(), organisation, made.ID, []device.Item{{CreativeID: "c", DurationMS: 10000}})
	require.NoError(t, err)
	code, _, err := s.CreateClaimCode(t.Context(), organisation, made.ID)
	require.NoError(t, err)
	credentials, err := s.Claim(t.Context(), code, "")
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	plane := device.NewPlane(store, "one", time.Now, hclog.NewNullLogger())
	var running sync.WaitGroup
	running.Go(func() { _ = plane.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	pass, err := plane.Admit(t.Context(), made.ID, credentials.Secret)
	require.NoError(t, err)
	session := &silent{id: "first", device: made.ID}
	plane.Connected(t.Context(), pass, session)
	plane.Listens(t.Context(), session, device.ChannelPlaylist)
	require.Len(t, session.sent, 1)
	online := func(want bool) {
		t.Helper()
		require.Eventually(t, func() bool {
			found, err := s.Find(t.Context(), organisation, made.ID)
			return err == nil && found.Presence.Online == want
		}, 15*time.Second, 20*time.Millisecond, "presence does not become %v", want)
	}
	online(true)

	own.Stop(t)
	payload := fmt.Appendf(nil, `{"plays":[{"id":%q,"creative_id":"c","duration_ms":10000}]}`, ulid.Make())
	acknowledged := make(chan error, 1)
	go func() { acknowledged <- plane.Received(t.Context(), session, device.ChannelPlays, payload) }()
	_, err = plane.Admit(t.Context(), made.ID, credentials.Secret)
	require.Error(t, err)
	require.NotErrorIs(t, err, device.ErrCredentials, "an outage is not a wrong password")
	// It goes while nobody can write that down.
	plane.Disconnected(t.Context(), session)
	select {
	case err := <-acknowledged:
		t.Fatalf("acknowledged without a database: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	own.Restart(t)
	require.NoError(t, <-acknowledged)
	var stored int
	require.NoError(t, db.Pool().QueryRow(t.Context(), "SELECT count(*) FROM plays").Scan(&stored))
	require.Equal(t, 1, stored)
	online(false)

	// A change that was made while nobody listened is found afterwards.
	pass, err = plane.Admit(t.Context(), made.ID, credentials.Secret)
	require.NoError(t, err)
	again := &silent{id: "second", device: made.ID}
	plane.Connected(t.Context(), pass, again)
	online(true)
	_, err = db.Pool().Exec(t.Context(), "UPDATE devices SET secret_hash = NULL, revoke_time = now()")
	require.NoError(t, err)
	_, err = db.Pool().Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN device' AND pid <> pg_backend_pid()")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return again.ended() == device.EndRevoked }, 15*time.Second, 20*time.Millisecond, "a revocation that was missed stands")
}

// TestInstanceDies has an instance that says nothing any more.
func TestInstanceDies(t *testing.T) {
	store, db := postgrestest.New(t, &pg)
	s := device.New(store, device.DefaultThrottle(), time.Now, rand.Reader)
	made, err := s.Create(t.Context(), "acc_1", "request-1", organisation, settings())
	require.NoError(t, err)
	require.NoError(t, store.SeeInstance(t.Context(), "dead"))
	require.NoError(t, store.Connect(t.Context(), "dead", []device.Connection{{DeviceID: made.ID, ID: "c", Time: time.Now()}}))
	found, err := s.Find(t.Context(), organisation, made.ID)
	require.NoError(t, err)
	require.True(t, found.Presence.Online)
	_, err = db.Pool().Exec(t.Context(), "UPDATE instances SET seen_time = now() - interval '5 seconds'")
	require.NoError(t, err)
	found, err = s.Find(t.Context(), organisation, made.ID)
	require.NoError(t, err)
	require.False(t, found.Presence.Online, "the players of a dead instance are believed connected")
}

// failing refuses to store what has a certain play in it.
type failing struct {
	device.PlaneStore
	poison string
}

var errPoison = errors.New("cannot be stored")

func (f failing) StorePlays(ctx context.Context, plays []device.Play, rejected []device.RejectedPlay, now time.Time) (device.Stored, error) {
	for _, p := range plays {
		if p.ID == f.poison {
			return device.Stored{}, errPoison
		}
	}
	return f.PlaneStore.StorePlays(ctx, plays, rejected, now)
}

// TestPoison has one batch that the database refuses among those of others.
func TestPoison(t *testing.T) {
	store, _ := postgrestest.New(t, &pg)
	poison := ulid.Make().String()
	plane := device.NewPlane(failing{store, poison}, "one", time.Now, hclog.NewNullLogger())
	payload := func(id string) []byte {
		return fmt.Appendf(nil, `{"plays":[{"id":%q,"creative_id":"c","duration_ms":1}]}`, id)
	}
	results := make([]error, 20)
	var players sync.WaitGroup
	for n := range results {
		id := ulid.Make().String()
		if n == 10 {
			id = poison
		}
		session := &silent{id: fmt.Sprint(n), device: fmt.Sprint("dev_", n)}
		players.Go(func() { results[n] = plane.Received(t.Context(), session, device.ChannelPlays, payload(id)) })
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = plane.Run(ctx) })
	players.Wait()
	cancel()
	running.Wait()
	for n, err := range results {
		if n == 10 {
			require.ErrorIs(t, err, errPoison)
			continue
		}
		require.NoError(t, err)
	}
}

// BenchmarkPlays is how many plays a second are stored and summed, handed in by 50
// players in batches of 100.
func BenchmarkPlays(b *testing.B) {
	store, _ := postgrestest.New(b, &pg)
	s := device.New(store, device.DefaultThrottle(), time.Now, rand.Reader)
	plane := device.NewPlane(store, "one", time.Now, hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = plane.Run(ctx) })
	b.Cleanup(func() { cancel(); running.Wait() })
	const players, batch = 50, 100
	ids := make([]string, players)
	for n := range ids {
		made, err := s.Create(b.Context(), "acc_1", fmt.Sprint("request-", n), organisation, settings())
		require.NoError(b, err)
		_, err = s.PutPlaylist(b.Context(), organisation, made.ID, []device.Item{{CreativeID: "c", DurationMS: 10000}})
		require.NoError(b, err)
		ids[n] = made.ID
	}
	stored := 0
	for b.Loop() {
		var all sync.WaitGroup
		for n, id := range ids {
			all.Go(func() {
				plays := make([]string, batch)
				for p := range plays {
					plays[p] = fmt.Sprintf(`{"id":%q,"creative_id":"c","duration_ms":10000}`, ulid.Make())
				}
				session := &silent{id: fmt.Sprint(n), device: id}
				if err := plane.Received(ctx, session, device.ChannelPlays, fmt.Appendf(nil, `{"plays":[%s]}`, strings.Join(plays, ","))); err != nil {
					b.Error(err)
				}
			})
		}
		all.Wait()
		stored += players * batch
	}
	b.ReportMetric(float64(stored)/b.Elapsed().Seconds(), "plays/s")
}
