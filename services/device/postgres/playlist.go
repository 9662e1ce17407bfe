package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/query"
)

// PutPlaylist implements device.Store.
func (s *Store) PutPlaylist(ctx context.Context, organisationID, id string, items []device.Item, now time.Time, check func(device.Settings) error) (p device.Playlist, err error) {
	if items == nil {
		items = []device.Item{}
	}
	text, err := json.Marshal(items)
	if err != nil {
		return device.Playlist{}, fmt.Errorf("writing a playlist: %w", err)
	}
	err = s.change(ctx, organisationID, id, false, func(ctx context.Context, q *query.Queries, row query.Device) error {
		settings, err := settingsOf(row)
		if err != nil {
			return err
		}
		if err := check(settings); err != nil {
			return err
		}
		if p, err = playlist(ctx, q, id); err != nil {
			return err
		}
		if p.Version > 0 && slices.Equal(p.Items, items) {
			return nil
		}
		p = device.Playlist{DeviceID: id, Items: items, UpdateTime: now}
		if p.Version, err = q.PutPlaylist(ctx, query.PutPlaylistParams{DeviceID: id, Items: text, UpdateTime: now}); err != nil {
			return err
		}
		for _, item := range items {
			if err := q.PutCreative(ctx, query.PutCreativeParams{DeviceID: id, CreativeID: item.CreativeID, DurationMs: int32(item.DurationMS)}); err != nil {
				return err
			}
		}
		return q.Notify(ctx, string(device.PlaylistChanged)+" "+id)
	})
	return p, err
}

// playlist is version 0 when none was set.
func playlist(ctx context.Context, q *query.Queries, id string) (device.Playlist, error) {
	row, err := q.Playlist(ctx, id)
	if none(err) {
		return device.Playlist{DeviceID: id}, nil
	}
	if err != nil {
		return device.Playlist{}, err
	}
	p := device.Playlist{DeviceID: id, Version: row.Version, UpdateTime: row.UpdateTime.UTC()}
	if err := json.Unmarshal(row.Items, &p.Items); err != nil {
		return device.Playlist{}, fmt.Errorf("reading the playlist of %s: %w", id, err)
	}
	return p, nil
}

// FindPlaylist implements device.Store.
func (s *Store) FindPlaylist(ctx context.Context, organisationID, id string) (p device.Playlist, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		if _, err := find(ctx, s.q, organisationID, id); err != nil {
			return err
		}
		p, err = playlist(ctx, s.q, id)
		return err
	})
	return p, err
}

// Programmes implements device.PlaneStore. The bookings are read after the editions,
// so that they are not older.
func (s *Store) Programmes(ctx context.Context, deviceIDs []string, now time.Time) (map[string]device.Programme, error) {
	var rows []query.ProgrammesRow
	var lines []query.BookedLine
	from, until := device.Window(now)
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		if rows, err = s.q.Programmes(ctx, deviceIDs); err != nil {
			return err
		}
		lines, err = s.q.LinesOn(ctx, query.LinesOnParams{DeviceIds: deviceIDs, FromTime: from, UntilTime: until})
		return err
	})
	if err != nil {
		return nil, err
	}
	programmes := make(map[string]device.Programme, len(rows))
	for _, r := range rows {
		p := device.Programme{
			Playlist: device.Playlist{DeviceID: r.DeviceID, Version: r.Version, UpdateTime: r.UpdateTime.UTC()},
			Edition:  device.Edition{Version: r.Version, Revision: r.Revision}, TimeZone: r.TimeZone,
			Slots: int(r.LoopSeconds / r.SlotSeconds), SlotLength: time.Duration(r.SlotSeconds) * time.Second,
		}
		if err := errors.Join(json.Unmarshal(r.Items, &p.Items), json.Unmarshal(r.Hours, &p.Hours)); err != nil {
			return nil, fmt.Errorf("reading the playlist of %s: %w", r.DeviceID, err)
		}
		programmes[r.DeviceID] = p
	}
	for _, row := range lines {
		p, ok := programmes[row.DeviceID]
		if !ok {
			continue // its first version is on its way
		}
		l, err := lineOf(row)
		if err != nil {
			return nil, err
		}
		p.Lines = append(p.Lines, l)
		programmes[row.DeviceID] = p
	}
	return programmes, nil
}

// Editions implements device.PlaneStore.
func (s *Store) Editions(ctx context.Context, deviceIDs []string) (map[string]device.Edition, error) {
	var rows []query.EditionsRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.Editions(ctx, deviceIDs)
		return err
	})
	editions := make(map[string]device.Edition, len(rows))
	for _, r := range rows {
		editions[r.DeviceID] = device.Edition{Version: r.Version, Revision: r.Revision}
	}
	return editions, err
}
