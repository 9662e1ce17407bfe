package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/query"
)

// Secrets implements device.PlaneStore.
func (s *Store) Secrets(ctx context.Context, deviceIDs []string) (map[string][]byte, error) {
	var rows []query.SecretsOfRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.SecretsOf(ctx, deviceIDs)
		return err
	})
	secrets := make(map[string][]byte, len(rows))
	for _, r := range rows {
		secrets[r.DeviceID] = r.SecretHash
	}
	return secrets, err
}

// SeeInstance implements device.PlaneStore.
func (s *Store) SeeInstance(ctx context.Context, instanceID string) error {
	return s.db.Call(ctx, func(ctx context.Context) error { return s.q.SeeInstance(ctx, instanceID) })
}

// ForgetInstance implements device.PlaneStore.
func (s *Store) ForgetInstance(ctx context.Context, instanceID string, now time.Time) error {
	return s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		if err := q.DisconnectOthers(ctx, query.DisconnectOthersParams{
			InstanceID: instanceID, ConnectionIds: []string{}, Before: now.Add(time.Hour), DisconnectTime: &now,
		}); err != nil {
			return err
		}
		return q.ForgetInstance(ctx, instanceID)
	})
}

// Connect implements device.PlaneStore.
func (s *Store) Connect(ctx context.Context, instanceID string, connections []device.Connection) error {
	p := query.ConnectParams{InstanceID: instanceID}
	for _, c := range connections {
		p.DeviceIds, p.ConnectionIds, p.ConnectTimes = append(p.DeviceIds, c.DeviceID), append(p.ConnectionIds, c.ID), append(p.ConnectTimes, c.Time)
	}
	return s.db.Call(ctx, func(ctx context.Context) error { return s.q.Connect(ctx, p) })
}

// Disconnect implements device.PlaneStore.
func (s *Store) Disconnect(ctx context.Context, c device.Connection, now time.Time) error {
	return s.db.Call(ctx, func(ctx context.Context) error {
		return s.q.Disconnect(ctx, query.DisconnectParams{DeviceID: c.DeviceID, ConnectionID: c.ID, DisconnectTime: &now})
	})
}

// DisconnectOthers implements device.PlaneStore.
func (s *Store) DisconnectOthers(ctx context.Context, instanceID string, ids []string, before, now time.Time) error {
	return s.db.Call(ctx, func(ctx context.Context) error {
		return s.q.DisconnectOthers(ctx, query.DisconnectOthersParams{InstanceID: instanceID, ConnectionIds: ids, Before: before, DisconnectTime: &now})
	})
}

// Connections implements device.PlaneStore.
func (s *Store) Connections(ctx context.Context, deviceIDs []string) (map[string]string, error) {
	var rows []query.ConnectionsOfRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.ConnectionsOf(ctx, deviceIDs)
		return err
	})
	last := make(map[string]string, len(rows))
	for _, r := range rows {
		last[r.DeviceID] = r.ConnectionID
	}
	return last, err
}

// AddPlayPartitions implements device.PlaneStore.
func (s *Store) AddPlayPartitions(ctx context.Context, now time.Time) error {
	return s.db.Call(ctx, func(ctx context.Context) error {
		_, err := s.q.AddPlayPartitions(ctx, query.AddPlayPartitionsParams{
			FirstDay: day(now.Add(-device.PlaysKept - 24*time.Hour)), LastDay: day(now.Add(2 * 24 * time.Hour)),
		})
		return err
	})
}

// day is that of a time, in UTC, as partitions have it.
func day(t time.Time) pgtype.Date {
	return pgtype.Date{Time: t.UTC().Truncate(24 * time.Hour), Valid: true}
}

// How the connection that listens is kept honest: one on which nothing comes for
// a while is asked whether it still is one.
const (
	quiet       = 10 * time.Second
	pingTimeout = 3 * time.Second
)

// Changes implements device.PlaneStore.
func (s *Store) Changes(ctx context.Context, listening func(), changed func(device.Change)) error {
	pooled, err := s.db.Pool().Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connecting to listen: %w", err)
	}
	// Out of the pool: it listens for as long as it lives.
	conn := pooled.Hijack()
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(closing)
	}()
	if _, err := conn.Exec(ctx, "LISTEN device"); err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	listening()
	for {
		if err := s.wait(ctx, conn, changed); err != nil {
			return err
		}
	}
}

func (s *Store) wait(ctx context.Context, conn *pgx.Conn, changed func(device.Change)) error {
	waiting, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	note, err := conn.WaitForNotification(waiting)
	switch {
	case err == nil:
		if change, ok := changeOf(note.Payload); ok {
			changed(change)
		}
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case waiting.Err() == nil:
		return fmt.Errorf("waiting for changes: %w", err)
	}
	ping, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if err := conn.Ping(ping); err != nil {
		return fmt.Errorf("waiting for changes: the connection is dead: %w", err)
	}
	return nil
}

// changeOf reads what Notify and tellPlays write, and the queries of presence.
func changeOf(text string) (device.Change, bool) {
	words := strings.Fields(text)
	if len(words) < 2 {
		return device.Change{}, false
	}
	if kind := device.ChangeKind(words[0]); kind == device.PlaysStored {
		return device.Change{Kind: kind, OrganisationID: words[1], Plays: playsOf(words[2:])}, true
	}
	c := device.Change{Kind: device.ChangeKind(words[0]), DeviceID: words[1]}
	if c.Kind == device.GroupCommandSent {
		c.DeviceID, c.GroupCommandID = "", words[1]
	}
	if len(words) > 2 {
		c.ConnectionID = words[2]
	}
	return c, true
}
