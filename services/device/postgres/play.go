package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/query"
)

// StorePlays implements device.PlaneStore.
func (s *Store) StorePlays(ctx context.Context, plays []device.Play, rejected []device.RejectedPlay, now time.Time) (device.Stored, error) {
	stored := device.Stored{Added: make(map[device.PlayKey]bool), Rejected: make(map[device.PlayKey]device.Rejection)}
	err := s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		clear(stored.Added)
		clear(stored.Rejected)
		possible, impossible, watched, err := judge(ctx, q, plays, now)
		if err != nil {
			return err
		}
		for _, r := range impossible {
			stored.Rejected[device.PlayKey{DeviceID: r.DeviceID, PlayID: r.PlayID}] = r.Reason
		}
		if err := reject(ctx, q, append(impossible, rejected...), now); err != nil {
			return err
		}
		if err := add(ctx, q, possible, now, stored.Added); err != nil {
			return err
		}
		return tellPlays(ctx, q, possible, stored.Added, watched)
	})
	return stored, err
}

// judge says which plays can have been, and of devices that are watched whose they
// are.
func judge(ctx context.Context, q *query.Queries, plays []device.Play, now time.Time) (possible []device.Play, impossible []device.RejectedPlay, watched map[string]string, err error) {
	if len(plays) == 0 {
		return nil, nil, nil, nil
	}
	devices, creatives := make(map[string]bool), make(map[string]bool)
	for _, p := range plays {
		devices[p.DeviceID], creatives[p.CreativeID] = true, true
	}
	known := device.Known{Slots: make(map[string]time.Duration), Creatives: make(map[device.Assignment]time.Duration)}
	slots, err := q.SlotsOf(ctx, keys(devices))
	if err != nil {
		return nil, nil, nil, err
	}
	watched = make(map[string]string)
	for _, r := range slots {
		known.Slots[r.DeviceID] = time.Duration(r.SlotSeconds) * time.Second
		if r.WatchedOrganisationID != "" {
			watched[r.DeviceID] = r.WatchedOrganisationID
		}
	}
	given, err := q.CreativesOf(ctx, query.CreativesOfParams{DeviceIds: keys(devices), CreativeIds: keys(creatives)})
	if err != nil {
		return nil, nil, nil, err
	}
	for _, r := range given {
		known.Creatives[device.Assignment{DeviceID: r.DeviceID, CreativeID: r.CreativeID}] = time.Duration(r.DurationMs) * time.Millisecond
	}
	possible, impossible, err = known.Split(plays, now)
	return possible, impossible, watched, err
}

func keys(set map[string]bool) []string {
	all := make([]string, 0, len(set))
	for key := range set {
		all = append(all, key)
	}
	return all
}

func reject(ctx context.Context, q *query.Queries, rejected []device.RejectedPlay, now time.Time) error {
	if len(rejected) == 0 {
		return nil
	}
	p := query.InsertRejectedPlaysParams{ReceiveTime: now}
	for _, r := range rejected {
		p.DeviceIds, p.PlayIds = append(p.DeviceIds, r.DeviceID), append(p.PlayIds, r.PlayID)
		p.Reasons, p.Plays = append(p.Reasons, string(r.Reason)), append(p.Plays, r.Text)
	}
	return q.InsertRejectedPlays(ctx, p)
}

func add(ctx context.Context, q *query.Queries, plays []device.Play, now time.Time, added map[device.PlayKey]bool) error {
	if len(plays) == 0 {
		return nil
	}
	p := query.InsertPlaysParams{ReceiveTime: now}
	for _, play := range plays {
		p.DeviceIds, p.PlayIds, p.CreativeIds = append(p.DeviceIds, play.DeviceID), append(p.PlayIds, play.ID), append(p.CreativeIds, play.CreativeID)
		p.StartTimes, p.DurationsMs = append(p.StartTimes, play.Start), append(p.DurationsMs, int32(play.Duration.Milliseconds()))
		p.Counted = append(p.Counted, play.Counted)
	}
	rows, err := q.InsertPlays(ctx, p)
	for _, r := range rows {
		added[device.PlayKey{DeviceID: r.DeviceID, PlayID: r.PlayID}] = true
	}
	return err
}

// ListPlays implements device.Store.
func (s *Store) ListPlays(ctx context.Context, organisationID, id string, span device.Span, after *device.HourPosition, limit int) ([]device.Hour, error) {
	p := query.HoursParams{DeviceID: id, FromTime: nullable(span.From), ToTime: nullable(span.To), AtMost: int32(limit)}
	if after != nil {
		p.AfterHour, p.AfterCreative = &after.Time, after.CreativeID
	}
	var rows []query.PlaysHourly
	err := s.db.Read(ctx, func(ctx context.Context) error {
		_, err := find(ctx, s.q, organisationID, id)
		if err == nil {
			rows, err = s.q.Hours(ctx, p)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	found := make([]device.Hour, len(rows))
	for i, r := range rows {
		found[i] = device.Hour{
			DeviceID: r.DeviceID, Time: r.HourTime.UTC(), CreativeID: r.CreativeID,
			Plays: r.Plays, Counted: r.Counted, Duration: time.Duration(r.DurationMs) * time.Millisecond,
		}
	}
	return found, nil
}

// Disagreements are up to limit hours of a span whose sums are not those of their
// plays: none, unless something else than StorePlays wrote to either table. It
// reads all plays of the span, which may take minutes.
func (s *Store) Disagreements(ctx context.Context, span device.Span, limit int) ([]device.Disagreement, error) {
	var rows []query.DisagreementsRow
	err := pgx.BeginTxFunc(ctx, s.db.Pool(), pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		if _, err = tx.Exec(ctx, "SET LOCAL statement_timeout = '10min'"); err == nil {
			rows, err = s.q.WithTx(tx).Disagreements(ctx, query.DisagreementsParams{FromTime: span.From, ToTime: span.To, AtMost: int32(limit)})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("comparing plays with their sums: %w", err)
	}
	found := make([]device.Disagreement, len(rows))
	for i, r := range rows {
		found[i] = device.Disagreement{DeviceID: r.DeviceID, Hour: r.HourTime.UTC(), CreativeID: r.CreativeID, Summed: r.Summed, Stored: r.Stored}
	}
	return found, nil
}

func nullable(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
