package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// Displays implements order.DisplayStore.
func (s *Store) Displays(ctx context.Context, ids []string) (found map[string]order.Display, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		found, err = displays(ctx, s.q, ids)
		return err
	})
	return found, err
}

func displays(ctx context.Context, q *query.Queries, ids []string) (map[string]order.Display, error) {
	rows, err := q.Displays(ctx, ids)
	if err != nil {
		return nil, err
	}
	found := make(map[string]order.Display, len(rows))
	for _, row := range rows {
		if found[row.Display.DeviceID], err = displayOf(row.Display); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// lockDisplays makes sure that nobody else changes what is reserved on displays until
// the transaction ends. Who changes reservations of a display has locked it, and all
// that they change at once, before they lock accounts.
func (w work) lockDisplays(ctx context.Context, ids []string) error {
	return w.later.LockDisplays(ctx, ids)
}

func displayOf(r query.Display) (order.Display, error) {
	var hours []airtime.Opening
	if err := json.Unmarshal(r.Hours, &hours); err != nil {
		return order.Display{}, fmt.Errorf("reading the hours of %s: %w", r.DeviceID, err)
	}
	if len(hours) == 0 {
		hours = nil
	}
	return order.Display{
		DeviceID: r.DeviceID, Number: r.DisplayNumber, OrganisationID: r.OrganisationID, Name: r.Name,
		Latitude: r.Latitude, Longitude: r.Longitude, Address: r.Address, VenueType: r.VenueType,
		WidthPX: int(r.WidthPx), HeightPX: int(r.HeightPx),
		LoopLength: time.Duration(r.LoopSeconds) * time.Second, SlotLength: time.Duration(r.SlotSeconds) * time.Second,
		SlotPrice: order.Money{Minor: r.PriceMinor, Currency: r.Currency}, TimeZone: r.TimeZone, Hours: hours,
		Revision: r.Revision, Playable: r.Playable,
	}, nil
}

// SearchDisplays implements order.DisplayStore.
func (s *Store) SearchDisplays(ctx context.Context, f order.DisplayFilter, after string, limit int) ([]order.Display, error) {
	p := query.SearchDisplaysParams{
		After: after, AtMost: int32(limit), DeviceIds: f.IDs, Anywhere: f.Area == nil, VenueTypes: f.VenueTypes,
		Orientation: string(f.Orientation), MinWidthPx: int32(f.MinWidthPX), MinHeightPx: int32(f.MinHeightPX),
	}
	if f.Area != nil {
		p.South, p.West, p.North, p.East = f.Area.South, f.Area.West, f.Area.North, f.Area.East
	}
	if f.MaxSlotPrice != nil {
		p.MaxCurrency, p.MaxPriceMinor = f.MaxSlotPrice.Currency, f.MaxSlotPrice.Minor
	}
	var rows []query.SearchDisplaysRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.SearchDisplays(ctx, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	found := make([]order.Display, len(rows))
	for i, row := range rows {
		if found[i], err = displayOf(row.Display); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// TakenSlots implements order.DisplayStore.
func (s *Store) TakenSlots(ctx context.Context, sets [][]airtime.Range, wanted []order.WantedSlots) (map[int64]int, error) {
	var p query.TakenCountsParams
	for i, times := range sets {
		p.SetNumbers, p.Sets = append(p.SetNumbers, int32(i)), append(p.Sets, timesText(times))
	}
	for _, w := range wanted {
		p.DisplayNumbers, p.Slots = append(p.DisplayNumbers, w.Number), append(p.Slots, int64(w.Slots))
		p.DisplaySets = append(p.DisplaySets, int32(w.Set))
	}
	var rows []query.TakenCountsRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.TakenCounts(ctx, p)
		return err
	})
	taken := make(map[int64]int, len(rows))
	for _, row := range rows {
		taken[row.DisplayNumber] = int(row.Taken)
	}
	return taken, err
}

// PutDisplay makes it part of a transaction that a display is like this, as an event
// told in its turn. Settings that are older than what is known change nothing.
func (s *Store) PutDisplay(ctx context.Context, tx pgx.Tx, d order.Display) error {
	_, err := put(ctx, s.q.WithTx(tx), d, nil)
	return err
}

// put stores a display, and says whether it is news. readTime is when the list in which
// it was began to be read; nil for an event, which comes in its turn.
func put(ctx context.Context, q *query.Queries, d order.Display, readTime *time.Time) (changed bool, err error) {
	hours, err := json.Marshal(append([]airtime.Opening{}, d.Hours...))
	if err != nil {
		return false, fmt.Errorf("writing the hours: %w", err)
	}
	n, err := q.PutDisplay(ctx, query.PutDisplayParams{
		DeviceID: d.DeviceID, OrganisationID: d.OrganisationID, Name: d.Name,
		Latitude: d.Latitude, Longitude: d.Longitude, Address: d.Address, VenueType: d.VenueType,
		WidthPx: int32(d.WidthPX), HeightPx: int32(d.HeightPX), LoopSeconds: seconds(d.LoopLength), SlotSeconds: seconds(d.SlotLength),
		PriceMinor: d.SlotPrice.Minor, Currency: d.SlotPrice.Currency, TimeZone: d.TimeZone, Hours: hours,
		Revision: d.Revision, Playable: d.Playable, ReadTime: readTime,
	})
	return n > 0, err
}

// Clock implements order.DisplayStore.
func (s *Store) Clock(ctx context.Context) (now time.Time, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		now, err = s.q.Clock(ctx)
		return err
	})
	return now.UTC(), err
}

// syncBatch is how many displays are stored in one transaction.
const syncBatch = 100

// SyncDisplays implements order.DisplayStore.
func (s *Store) SyncDisplays(ctx context.Context, part order.DisplayPart) (changed int, err error) {
	ids := make([]string, len(part.Displays))
	for i, d := range part.Displays {
		ids[i] = d.DeviceID
	}
	known, err := s.Displays(ctx, ids)
	if err != nil {
		return 0, err
	}
	var news []order.Display
	for _, d := range part.Displays {
		if !d.Equal(known[d.DeviceID]) {
			news = append(news, d)
		}
	}
	for len(news) > 0 {
		batch := news[:min(syncBatch, len(news))]
		news = news[len(batch):]
		n := 0
		if err := s.transact(ctx, func(ctx context.Context, w work) error {
			n = 0
			for _, d := range batch {
				one, err := put(ctx, w.Queries, d, &part.ReadTime)
				if err != nil {
					return fmt.Errorf("storing %s: %w", d.DeviceID, err)
				}
				if one {
					n++
				}
			}
			return nil
		}); err != nil {
			return changed, err
		}
		changed += n
	}
	err = s.db.Call(ctx, func(ctx context.Context) error {
		gone, err := s.q.WithdrawDisplays(ctx, query.WithdrawDisplaysParams{
			ReadTime: part.ReadTime, Before: part.Before, FromID: part.From, DeviceIds: ids,
		})
		changed += int(gone)
		return err
	})
	return changed, err
}

// unlockWithin bounds giving a lock back.
const unlockWithin = time.Second

// SyncAlone implements order.DisplayStore. The lock is a connection's: when that
// breaks another instance may begin, which costs no more than its work.
func (s *Store) SyncAlone(ctx context.Context, do func(context.Context) error) (did bool, err error) {
	conn, err := s.db.Pool().Acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("connecting to synchronise: %w", err)
	}
	defer conn.Release()
	q := query.New(conn)
	if err := s.db.Call(ctx, func(ctx context.Context) error {
		did, err = q.TrySyncLock(ctx)
		return err
	}); err != nil || !did {
		return false, err
	}
	err = do(ctx)
	// Also when ctx has ended: the connection goes back to the pool.
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockWithin)
	defer cancel()
	if unlock := q.SyncUnlock(within); unlock != nil {
		err = errors.Join(err, fmt.Errorf("giving the lock back: %w", unlock), conn.Conn().Close(within))
	}
	return true, err
}
