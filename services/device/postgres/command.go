package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/query"
)

// CreateCommand implements device.Store.
func (s *Store) CreateCommand(ctx context.Context, r device.Request, organisationID string, c device.Command) (made device.Command, err error) {
	err = s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		before, err := once(ctx, q, r, c.ID)
		if err != nil {
			return err
		}
		// Its commands are counted before they become more.
		if err := q.LockOrganisation(ctx, organisationID); err != nil {
			return err
		}
		if _, err := find(ctx, q, organisationID, c.DeviceID); err != nil {
			return err
		}
		if before != "" {
			made, err = command(ctx, q, c.DeviceID, before, r.Time)
			return err
		}
		full, err := withTooManyCommands(ctx, q, []string{c.DeviceID}, r.Time)
		if err != nil {
			return err
		}
		if full[c.DeviceID] {
			return device.ErrTooManyCommands
		}
		p := insertion(c.Kind, c.Duration, c.CreativeID, c.CreateTime, c.ExpireTime)
		p.CommandIds, p.DeviceIds, p.Results = []string{c.ID}, []string{c.DeviceID}, []string{""}
		if err := insertCommands(ctx, q, p); err != nil {
			return err
		}
		if err := q.Notify(ctx, string(device.CommandSent)+" "+c.DeviceID); err != nil {
			return err
		}
		made, err = command(ctx, q, c.DeviceID, c.ID, r.Time)
		return err
	})
	return made, err
}

// CreateGroupCommand implements device.Store. However many devices there are,
// instances hear of it once.
func (s *Store) CreateGroupCommand(ctx context.Context, r device.Request, organisationID string, g device.GroupCommand, newID func() (string, error)) (made device.GroupCommand, err error) {
	err = s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		before, err := once(ctx, q, r, g.ID)
		if err != nil {
			return err
		}
		if before != "" {
			made, err = groupCommand(ctx, q, organisationID, g.GroupID, before, r.Time)
			return err
		}
		if err := q.LockOrganisation(ctx, organisationID); err != nil {
			return err
		}
		if _, err := group(ctx, q, organisationID, g.GroupID); err != nil {
			return err
		}
		ids, err := q.GroupDevices(ctx, g.GroupID)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			return device.ErrGroupEmpty
		}
		full, err := withTooManyCommands(ctx, q, ids, r.Time)
		if err != nil {
			return err
		}
		p := insertion(g.Kind, g.Duration, g.CreativeID, g.CreateTime, g.ExpireTime)
		p.GroupID, p.GroupCommandID, p.Detail, p.DeviceIds = g.GroupID, g.ID, device.DetailTooManyCommands, ids
		for _, id := range ids {
			commandID, err := newID()
			if err != nil {
				return err
			}
			result := ""
			if full[id] {
				result = string(device.Failed)
			}
			p.CommandIds, p.Results = append(p.CommandIds, commandID), append(p.Results, result)
		}
		if err := insertCommands(ctx, q, p); err != nil {
			return err
		}
		if err := q.Notify(ctx, string(device.GroupCommandSent)+" "+g.ID); err != nil {
			return err
		}
		made, err = groupCommand(ctx, q, organisationID, g.GroupID, g.ID, r.Time)
		return err
	})
	return made, err
}

func insertion(kind device.CommandKind, duration time.Duration, creativeID string, created, expires time.Time) query.InsertCommandsParams {
	return query.InsertCommandsParams{
		Kind: string(kind), DurationMs: int32(duration.Milliseconds()), CreativeID: creativeID, CreateTime: created, ExpireTime: expires,
	}
}

// insertCommands adds to each takedown which playlist is the newest.
func insertCommands(ctx context.Context, q *query.Queries, p query.InsertCommandsParams) error {
	newest := make(map[string]int64)
	if p.Kind == string(device.Takedown) {
		rows, err := q.PlaylistVersions(ctx, p.DeviceIds)
		if err != nil {
			return err
		}
		for _, r := range rows {
			newest[r.DeviceID] = r.Version
		}
	}
	for _, id := range p.DeviceIds {
		p.PlaylistVersions = append(p.PlaylistVersions, newest[id])
	}
	return q.InsertCommands(ctx, p)
}

// withTooManyCommands are those of the devices that are sent no more.
func withTooManyCommands(ctx context.Context, q *query.Queries, ids []string, now time.Time) (map[string]bool, error) {
	rows, err := q.CountOpenCommands(ctx, query.CountOpenCommandsParams{DeviceIds: ids, Now: now})
	full := make(map[string]bool)
	for _, r := range rows {
		if r.Commands >= device.MaxOpenCommands {
			full[r.DeviceID] = true
		}
	}
	return full, err
}

func command(ctx context.Context, q *query.Queries, deviceID, id string, now time.Time) (device.Command, error) {
	row, err := q.Command(ctx, query.CommandParams{CommandID: id, DeviceID: deviceID})
	if none(err) {
		return device.Command{}, device.ErrCommandNotFound.Because(err)
	}
	if err != nil {
		return device.Command{}, err
	}
	return commandOf(row, now), nil
}

func commandOf(r query.CommandRow, now time.Time) device.Command {
	state := device.CommandState(r.Result)
	switch {
	case state != "":
	case !r.ExpireTime.After(now):
		state = device.Expired
	case r.SendTime != nil:
		state = device.Sent
	default:
		state = device.Queued
	}
	return device.Command{
		ID: r.CommandID, DeviceID: r.DeviceID, GroupID: r.GroupID, GroupCommandID: r.GroupCommandID,
		Kind: device.CommandKind(r.Kind), Duration: time.Duration(r.DurationMs) * time.Millisecond, CreativeID: r.CreativeID, PlaylistVersion: r.PlaylistVersion,
		State: state, Detail: r.Detail,
		CreateTime: r.CreateTime.UTC(), ExpireTime: r.ExpireTime.UTC(), SendTime: moment(r.SendTime), ReplyTime: moment(r.ReplyTime),
	}
}

func groupCommand(ctx context.Context, q *query.Queries, organisationID, groupID, id string, now time.Time) (device.GroupCommand, error) {
	r, err := q.GroupCommand(ctx, query.GroupCommandParams{GroupCommandID: id, GroupID: groupID, OrganisationID: organisationID, Now: now})
	if none(err) {
		return device.GroupCommand{}, device.ErrCommandNotFound.Because(err)
	}
	if err != nil {
		return device.GroupCommand{}, err
	}
	return device.GroupCommand{
		ID: r.GroupCommandID, GroupID: r.GroupID, Kind: device.CommandKind(r.Kind), Duration: time.Duration(r.DurationMs) * time.Millisecond,
		CreativeID: r.CreativeID, CreateTime: r.CreateTime.UTC(), ExpireTime: r.ExpireTime.UTC(), Devices: int(r.Devices),
		States: map[device.CommandState]int{
			device.Queued: int(r.Devices - r.Sent - r.Done - r.Declined - r.Failed - r.Expired), device.Sent: int(r.Sent),
			device.Done: int(r.Done), device.Declined: int(r.Declined), device.Failed: int(r.Failed), device.Expired: int(r.Expired),
		},
	}, nil
}

// FindCommand implements device.Store.
func (s *Store) FindCommand(ctx context.Context, organisationID, deviceID, id string, now time.Time) (c device.Command, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		if _, err := find(ctx, s.q, organisationID, deviceID); err != nil {
			return err
		}
		if c, err = command(ctx, s.q, deviceID, id, now); err != nil {
			return err
		}
		c.Image, err = s.q.CommandImage(ctx, id)
		return err
	})
	return c, err
}

// ListCommands implements device.Store.
func (s *Store) ListCommands(ctx context.Context, organisationID, deviceID, before string, limit int, now time.Time) (found []device.Command, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		if _, err := find(ctx, s.q, organisationID, deviceID); err != nil {
			return err
		}
		rows, err := s.q.Commands(ctx, query.CommandsParams{DeviceID: deviceID, Before: before, AtMost: int32(limit)})
		found = make([]device.Command, len(rows))
		for i, r := range rows {
			found[i] = commandOf(query.CommandRow(r), now)
		}
		return err
	})
	return found, err
}

// FindGroupCommand implements device.Store.
func (s *Store) FindGroupCommand(ctx context.Context, organisationID, groupID, id string, now time.Time) (g device.GroupCommand, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		g, err = groupCommand(ctx, s.q, organisationID, groupID, id, now)
		return err
	})
	return g, err
}

// OpenCommands implements device.PlaneStore.
func (s *Store) OpenCommands(ctx context.Context, deviceIDs []string, now time.Time) (open []device.Command, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		rows, err := s.q.OpenCommands(ctx, query.OpenCommandsParams{DeviceIds: deviceIDs, Now: now})
		open = make([]device.Command, len(rows))
		for i, r := range rows {
			open[i] = commandOf(query.CommandRow(r), now)
		}
		return err
	})
	return open, err
}

// OpenGroupCommands implements device.PlaneStore.
func (s *Store) OpenGroupCommands(ctx context.Context, groupCommandID string, now time.Time) (open []device.Command, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		rows, err := s.q.OpenGroupCommands(ctx, query.OpenGroupCommandsParams{GroupCommandID: groupCommandID, Now: now})
		open = make([]device.Command, len(rows))
		for i, r := range rows {
			open[i] = commandOf(query.CommandRow(r), now)
		}
		return err
	})
	return open, err
}

// CommandsSent implements device.PlaneStore.
func (s *Store) CommandsSent(ctx context.Context, commandIDs []string, now time.Time) error {
	return s.db.Call(ctx, func(ctx context.Context) error {
		return s.q.CommandsSent(ctx, query.CommandsSentParams{CommandIds: commandIDs, SendTime: &now})
	})
}

// StoreReply implements device.PlaneStore.
func (s *Store) StoreReply(ctx context.Context, deviceID string, r device.Reply, now time.Time) (became device.CommandState, err error) {
	err = s.db.Call(ctx, func(ctx context.Context) error {
		result, err := s.q.StoreReply(ctx, query.StoreReplyParams{
			CommandID: r.CommandID, DeviceID: deviceID, Result: string(r.Result), Detail: r.Detail, Image: r.Image, Now: now,
		})
		if none(err) {
			result, err = "", nil
		}
		became = device.CommandState(result)
		return err
	})
	return became, err
}
