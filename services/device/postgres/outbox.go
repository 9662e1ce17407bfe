package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/query"
)

// Stream is where other services hear of devices. The key of its events is the
// device's id, and replicas on how many servers of NATS they are.
func Stream(replicas int) events.Stream {
	return events.Stream{Name: "DEVICE", Subjects: []string{"device.>"}, Replicas: replicas}
}

// What happens to devices.
const (
	deviceCreated = "device.created"
	deviceUpdated = "device.updated" // its settings
	deviceClaimed = "device.claimed"
	deviceRevoked = "device.revoked"
	deviceDeleted = "device.deleted"
)

// tell makes it part of a transaction that other services hear of a device. It
// has to be new, or locked: that keeps its events in the order of its changes.
type tell func(ctx context.Context, happened string, d device.Device) error

// transactTelling is Transact with the queries of the transaction, and a way to
// tell other services what it changes.
func (s *Store) transactTelling(ctx context.Context, use func(context.Context, *query.Queries, tell) error) error {
	return s.db.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return use(ctx, s.q.WithTx(tx), func(ctx context.Context, happened string, d device.Device) error {
			payload, err := s.payload(d)
			if err != nil {
				return err
			}
			return s.outbox.Append(ctx, tx, events.Event{Subject: happened, Key: d.ID, Payload: payload})
		})
	})
}
