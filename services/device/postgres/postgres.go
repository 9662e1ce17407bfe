// Package postgres keeps devices, their playlists and their plays in Postgres.
package postgres

import (
	"context"
	"crypto/hmac"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/query"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store implements device.Store and device.PlaneStore.
type Store struct {
	db      *database.Database
	q       *query.Queries
	outbox  *events.Outbox
	payload func(device.Device) ([]byte, error)
}

// New keeps devices in a database, which Prepare makes ready. Other services hear
// of them through outbox, that of Stream, in events whose payload says how a
// device is.
func New(db *database.Database, outbox *events.Outbox, payload func(device.Device) ([]byte, error)) *Store {
	return &Store{db: db, q: query.New(db.Pool()), outbox: outbox, payload: payload}
}

// Prepare waits for the database, brings its schema up to date, and makes what
// plays of these days are stored in.
func (s *Store) Prepare(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("finding the migrations: %w", err)
	}
	return s.db.Prepare(ctx, files, func(ctx context.Context) error { return s.AddPlayPartitions(ctx, time.Now()) })
}

// transact is Transact with the queries of the transaction.
func (s *Store) transact(ctx context.Context, use func(context.Context, *query.Queries) error) error {
	return s.transactTelling(ctx, func(ctx context.Context, q *query.Queries, _ tell) error { return use(ctx, q) })
}

// none says whether a query found no row.
func none(err error) bool { return errors.Is(err, pgx.ErrNoRows) }

// CreateDevice implements device.Store.
func (s *Store) CreateDevice(ctx context.Context, r device.Request, d device.Device) (device.Device, error) {
	hours, err := json.Marshal(hoursOf(d.Settings))
	if err != nil {
		return device.Device{}, fmt.Errorf("writing the hours: %w", err)
	}
	made := d
	err = s.transactTelling(ctx, func(ctx context.Context, q *query.Queries, tell tell) error {
		before, err := once(ctx, q, r, d.ID)
		if err != nil {
			return err
		}
		if before != "" {
			made, err = find(ctx, q, d.OrganisationID, before)
			return err
		}
		if err := q.LockOrganisation(ctx, d.OrganisationID); err != nil {
			return err
		}
		n, err := q.CountDevices(ctx, d.OrganisationID)
		if err != nil {
			return err
		}
		if n >= device.MaxDevices {
			return device.ErrTooManyDevices
		}
		o := d.Settings
		if err := q.InsertDevice(ctx, query.InsertDeviceParams{
			DeviceID: d.ID, OrganisationID: d.OrganisationID, Name: o.Name,
			Latitude: o.Place.Latitude, Longitude: o.Place.Longitude, Address: o.Place.Address, VenueType: o.VenueType,
			WidthPx: int32(o.Screen.Width), HeightPx: int32(o.Screen.Height),
			LoopSeconds: seconds(o.LoopLength), SlotSeconds: seconds(o.SlotLength),
			PriceMinor: o.SlotPrice.AmountMinor, Currency: o.SlotPrice.Currency, TimeZone: o.TimeZone, Hours: hours,
			Revision: d.Revision, CreateTime: d.CreateTime, UpdateTime: d.UpdateTime,
		}); err != nil {
			return err
		}
		if err := q.Notify(ctx, string(device.SettingsChanged)+" "+d.ID); err != nil {
			return err
		}
		return tell(ctx, deviceCreated, d)
	})
	return made, err
}

// once is for a request that makes what has this id. When it came before, it
// returns the id of what the first of it made.
func once(ctx context.Context, q *query.Queries, r device.Request, id string) (before string, err error) {
	claimed, err := q.ClaimRequest(ctx, query.ClaimRequestParams{
		CallerID: r.CallerID, RequestID: r.RequestID, Fingerprint: r.Fingerprint, MadeID: id, ExpireTime: r.ExpireTime, Now: r.Time,
	})
	if err != nil || claimed > 0 {
		return "", err
	}
	first, err := q.Request(ctx, query.RequestParams{CallerID: r.CallerID, RequestID: r.RequestID})
	if err != nil {
		return "", err
	}
	if !hmac.Equal(first.Fingerprint, r.Fingerprint) {
		return "", device.ErrRequestIDReused
	}
	return first.MadeID, nil
}

func hoursOf(s device.Settings) []airtime.Opening {
	if s.Hours == nil {
		return []airtime.Opening{}
	}
	return s.Hours
}

func seconds(d time.Duration) int32 { return int32(d / time.Second) }

// FindDevice implements device.Store.
func (s *Store) FindDevice(ctx context.Context, organisationID, id string) (d device.Device, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		d, err = find(ctx, s.q, organisationID, id)
		return err
	})
	return d, err
}

func find(ctx context.Context, q *query.Queries, organisationID, id string) (device.Device, error) {
	row, err := q.Device(ctx, query.DeviceParams{OrganisationID: organisationID, DeviceID: id})
	if none(err) {
		return device.Device{}, device.ErrNotFound.Because(err)
	}
	if err != nil {
		return device.Device{}, err
	}
	return deviceOf(row)
}

// ListDevices implements device.Store.
func (s *Store) ListDevices(ctx context.Context, organisationID string, f device.Filter, before string, limit int) ([]device.Device, error) {
	var rows []query.DevicesRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.Devices(ctx, query.DevicesParams{
			OrganisationID: organisationID, Before: before, AtMost: int32(limit),
			State: string(f.State), VenueType: f.VenueType, NameContains: f.NameContains, GroupID: f.GroupID,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return devicesOf(rows)
}

// SearchDevices implements device.Store.
func (s *Store) SearchDevices(ctx context.Context, o device.Search, before string, limit int) ([]device.Device, error) {
	p := query.SearchDevicesParams{
		Before: before, AtMost: int32(limit), DeviceIds: o.IDs, OrganisationID: o.OrganisationID, State: string(o.State),
		Anywhere: o.Area == nil, VenueTypes: o.VenueTypes, MinWidthPx: int32(o.MinScreen.Width), MinHeightPx: int32(o.MinScreen.Height),
	}
	if o.Area != nil {
		p.South, p.West, p.North, p.East = o.Area.South, o.Area.West, o.Area.North, o.Area.East
	}
	var rows []query.SearchDevicesRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.SearchDevices(ctx, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	return devicesOf(rows)
}

func devicesOf[R query.DevicesRow | query.SearchDevicesRow](rows []R) (found []device.Device, err error) {
	found = make([]device.Device, len(rows))
	for i, row := range rows {
		if found[i], err = deviceOf(query.DeviceRow(row)); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func deviceOf(row query.DeviceRow) (device.Device, error) {
	r := row.Device
	settings, err := settingsOf(r)
	if err != nil {
		return device.Device{}, err
	}
	return device.Device{
		ID: r.DeviceID, OrganisationID: r.OrganisationID, Settings: settings, State: stateOf(r.SecretHash != nil, r.RevokeTime),
		Presence: presenceOf(row.Online, row.ConnectTime, row.DisconnectTime, row.SeenTime),
		Revision: r.Revision, CreateTime: r.CreateTime.UTC(), UpdateTime: r.UpdateTime.UTC(), ClaimTime: moment(r.ClaimTime),
	}, nil
}

func stateOf(claimed bool, revokeTime *time.Time) device.State {
	switch {
	case claimed:
		return device.Claimed
	case revokeTime != nil:
		return device.Revoked
	default:
		return device.Unclaimed
	}
}

// presenceOf is that of a device with the last connection from connectTime to
// disconnectTime, at an instance that was last seen at seenTime.
func presenceOf(online bool, connectTime, disconnectTime, seenTime *time.Time) device.Presence {
	since := connectTime
	switch {
	case online:
	case disconnectTime != nil:
		since = disconnectTime
	case seenTime != nil:
		// Its instance died: that was the last moment it was known to be connected.
		since = seenTime
	}
	return device.Presence{Online: online, Since: moment(since)}
}

func settingsOf(r query.Device) (device.Settings, error) {
	var hours []airtime.Opening
	if err := json.Unmarshal(r.Hours, &hours); err != nil {
		return device.Settings{}, fmt.Errorf("reading the hours of %s: %w", r.DeviceID, err)
	}
	if len(hours) == 0 {
		hours = nil
	}
	return device.Settings{
		Name: r.Name, Place: device.Place{Latitude: r.Latitude, Longitude: r.Longitude, Address: r.Address}, VenueType: r.VenueType,
		Screen:     device.Screen{Width: int(r.WidthPx), Height: int(r.HeightPx)},
		LoopLength: time.Duration(r.LoopSeconds) * time.Second, SlotLength: time.Duration(r.SlotSeconds) * time.Second,
		SlotPrice: device.Price{AmountMinor: r.PriceMinor, Currency: r.Currency}, TimeZone: r.TimeZone, Hours: hours,
	}, nil
}

func moment(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// change runs do in a transaction while nobody else can change the device; with
// deleted also for one that was deleted.
func (s *Store) change(ctx context.Context, organisationID, id string, deleted bool, do func(context.Context, *query.Queries, query.Device) error) error {
	return s.changeTelling(ctx, organisationID, id, deleted, func(ctx context.Context, q *query.Queries, row query.Device, _ tell) error {
		return do(ctx, q, row)
	})
}

// changeTelling is change for what other services hear of.
func (s *Store) changeTelling(ctx context.Context, organisationID, id string, deleted bool, do func(context.Context, *query.Queries, query.Device, tell) error) error {
	return s.transactTelling(ctx, func(ctx context.Context, q *query.Queries, tell tell) error {
		row, err := q.LockDevice(ctx, query.LockDeviceParams{OrganisationID: organisationID, DeviceID: id})
		if none(err) || err == nil && row.Device.DeleteTime != nil && !deleted {
			return device.ErrNotFound.Because(err)
		}
		if err != nil {
			return err
		}
		return do(ctx, q, row.Device, tell)
	})
}

// UpdateDevice implements device.Store.
func (s *Store) UpdateDevice(ctx context.Context, organisationID, id string, o device.Settings, revision int64, now time.Time) (d device.Device, err error) {
	hours, err := json.Marshal(hoursOf(o))
	if err != nil {
		return device.Device{}, fmt.Errorf("writing the hours: %w", err)
	}
	err = s.changeTelling(ctx, organisationID, id, false, func(ctx context.Context, q *query.Queries, row query.Device, tell tell) error {
		before, err := settingsOf(row)
		if err != nil {
			return err
		}
		same := before.Equal(o)
		if !same {
			if revision != 0 && revision != row.Revision {
				return device.ErrChanged
			}
			if err := q.UpdateDevice(ctx, query.UpdateDeviceParams{
				DeviceID: id, Name: o.Name,
				Latitude: o.Place.Latitude, Longitude: o.Place.Longitude, Address: o.Place.Address, VenueType: o.VenueType,
				WidthPx: int32(o.Screen.Width), HeightPx: int32(o.Screen.Height),
				LoopSeconds: seconds(o.LoopLength), SlotSeconds: seconds(o.SlotLength),
				PriceMinor: o.SlotPrice.AmountMinor, Currency: o.SlotPrice.Currency, TimeZone: o.TimeZone, Hours: hours, UpdateTime: now,
			}); err != nil {
				return err
			}
			if err := q.Notify(ctx, string(device.SettingsChanged)+" "+id); err != nil {
				return err
			}
		}
		if d, err = find(ctx, q, organisationID, id); err != nil || same {
			return err
		}
		return tell(ctx, deviceUpdated, d)
	})
	return d, err
}

// DeleteDevice implements device.Store.
func (s *Store) DeleteDevice(ctx context.Context, organisationID, id string, now time.Time) error {
	return s.changeTelling(ctx, organisationID, id, true, func(ctx context.Context, q *query.Queries, row query.Device, tell tell) error {
		if row.DeleteTime != nil {
			return nil
		}
		last, err := deviceOf(query.DeviceRow{Device: row})
		if err != nil {
			return err
		}
		if err := q.DeleteDevice(ctx, query.DeleteDeviceParams{DeviceID: id, DeleteTime: &now}); err != nil {
			return err
		}
		if err := q.LeaveGroups(ctx, id); err != nil {
			return err
		}
		if err := withdraw(ctx, q, id); err != nil {
			return err
		}
		return tell(ctx, deviceDeleted, last)
	})
}

// withdraw takes away a claim code and says that credentials changed.
func withdraw(ctx context.Context, q *query.Queries, id string) error {
	if err := q.DeleteClaimCode(ctx, id); err != nil {
		return err
	}
	return q.Notify(ctx, string(device.CredentialsChanged)+" "+id)
}

// What one Sweep removes at most of each kind: batches of rows, each a short
// transaction.
const (
	sweepBatch   = 5000
	sweepBatches = 50
)

// partitionsKept is for how long after a day its plays are kept: for longer than
// they are taken, whatever the clocks of instances say.
const partitionsKept = device.PlaysKept + 48*time.Hour

// Sweep removes what is not needed any more, a bounded number in one call. It says
// how many rows, and partitions of plays, that were.
func (s *Store) Sweep(ctx context.Context, now time.Time) (int64, error) {
	var total int64
	for _, sweep := range []func(context.Context) (int64, error){
		func(ctx context.Context) (int64, error) {
			return s.q.SweepRequests(ctx, query.SweepRequestsParams{Now: now, Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepClaimCodes(ctx, query.SweepClaimCodesParams{Now: now, Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepClaimFailures(ctx, query.SweepClaimFailuresParams{Now: now, Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepRejectedPlays(ctx, query.SweepRejectedPlaysParams{Before: now.Add(-device.RejectedKept), Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepCommands(ctx, query.SweepCommandsParams{Before: now.Add(-device.CommandsKept), Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepLines(ctx, query.SweepLinesParams{Before: now.Add(-device.LinesKept), Batch: sweepBatch})
		},
		s.q.SweepInstances,
		s.q.SweepWatches,
		func(ctx context.Context) (int64, error) {
			n, err := s.q.DropPlayPartitions(ctx, day(now.Add(-partitionsKept)))
			return int64(n), err
		},
	} {
		for range sweepBatches {
			var removed int64
			err := s.db.Call(ctx, func(ctx context.Context) (err error) {
				removed, err = sweep(ctx)
				return err
			})
			total += removed
			if err != nil {
				return total, err
			}
			if removed < sweepBatch {
				break
			}
		}
	}
	return total, nil
}
