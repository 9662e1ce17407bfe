// Package server serves marquee.device.v1 over gRPC: it translates between
// messages and the domain, and decides nothing.
package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	"github.com/marquee-ads/marquee/services/device"
)

// Server implements DeviceService. Validation, authentication, roles and the
// translation of errors are done by the interceptors before and after it.
type Server struct {
	devicev1.UnimplementedDeviceServiceServer
	service *device.Service
	watches *device.Watches
}

// New serves a service, and the watches of this instance.
func New(service *device.Service, watches *device.Watches) *Server {
	return &Server{service: service, watches: watches}
}

// CreateDevice makes a device.
func (s *Server) CreateDevice(ctx context.Context, req *devicev1.CreateDeviceRequest) (*devicev1.CreateDeviceResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	made, err := s.service.Create(ctx, caller.ID(), req.GetRequestId(), req.GetOrganisationId(), settings(req.GetSettings()))
	if err != nil {
		return nil, err
	}
	return &devicev1.CreateDeviceResponse{Device: deviceMessage(made)}, nil
}

// GetDevice returns a device.
func (s *Server) GetDevice(ctx context.Context, req *devicev1.GetDeviceRequest) (*devicev1.GetDeviceResponse, error) {
	found, err := s.service.Find(ctx, req.GetOrganisationId(), req.GetDeviceId())
	if err != nil {
		return nil, err
	}
	return &devicev1.GetDeviceResponse{Device: deviceMessage(found)}, nil
}

// ListDevices returns a page of an organisation's devices.
func (s *Server) ListDevices(ctx context.Context, req *devicev1.ListDevicesRequest) (*devicev1.ListDevicesResponse, error) {
	filter := device.Filter{State: stateOf(req.GetState()), VenueType: req.GetVenueType(), NameContains: req.GetNameContains(), GroupID: req.GetGroupId()}
	found, next, err := s.service.List(ctx, req.GetOrganisationId(), filter, service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &devicev1.ListDevicesResponse{Devices: service.Messages(found, deviceMessage), NextPageToken: next}, nil
}

// SearchDevices returns a page of the devices of all organisations.
func (s *Server) SearchDevices(ctx context.Context, req *devicev1.SearchDevicesRequest) (*devicev1.SearchDevicesResponse, error) {
	search := device.Search{
		IDs: req.GetDeviceIds(), OrganisationID: req.GetOrganisationId(), State: stateOf(req.GetState()), VenueTypes: req.GetVenueTypes(),
		MinScreen: device.Screen{Width: int(req.GetMinWidthPx()), Height: int(req.GetMinHeightPx())},
	}
	if a := req.GetArea(); a != nil {
		search.Area = &device.Area{South: a.GetSouth(), West: a.GetWest(), North: a.GetNorth(), East: a.GetEast()}
	}
	found, next, err := s.service.Search(ctx, search, service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &devicev1.SearchDevicesResponse{Devices: service.Messages(found, deviceMessage), NextPageToken: next}, nil
}

// UpdateDevice replaces a device's settings.
func (s *Server) UpdateDevice(ctx context.Context, req *devicev1.UpdateDeviceRequest) (*devicev1.UpdateDeviceResponse, error) {
	changed, err := s.service.Update(ctx, req.GetOrganisationId(), req.GetDeviceId(), settings(req.GetSettings()), req.GetRevision())
	if err != nil {
		return nil, err
	}
	return &devicev1.UpdateDeviceResponse{Device: deviceMessage(changed)}, nil
}

// DeleteDevice takes a device away.
func (s *Server) DeleteDevice(ctx context.Context, req *devicev1.DeleteDeviceRequest) (*devicev1.DeleteDeviceResponse, error) {
	if err := s.service.Delete(ctx, req.GetOrganisationId(), req.GetDeviceId()); err != nil {
		return nil, err
	}
	return &devicev1.DeleteDeviceResponse{}, nil
}

// CreateClaimCode makes the code that a player trades for credentials.
func (s *Server) CreateClaimCode(ctx context.Context, req *devicev1.CreateClaimCodeRequest) (*devicev1.CreateClaimCodeResponse, error) {
	code, expires, err := s.service.CreateClaimCode(ctx, req.GetOrganisationId(), req.GetDeviceId())
	if err != nil {
		return nil, err
	}
	return &devicev1.CreateClaimCodeResponse{ClaimCode: code, ExpireTime: timestamppb.New(expires)}, nil
}

// ClaimDevice trades a code for credentials.
func (s *Server) ClaimDevice(ctx context.Context, req *devicev1.ClaimDeviceRequest) (*devicev1.ClaimDeviceResponse, error) {
	credentials, err := s.service.Claim(ctx, req.GetClaimCode(), service.ClientAddress(ctx))
	if err != nil {
		return nil, err
	}
	return &devicev1.ClaimDeviceResponse{Credentials: credentialsMessage(credentials)}, nil
}

// RotateCredentials makes new credentials.
func (s *Server) RotateCredentials(ctx context.Context, req *devicev1.RotateCredentialsRequest) (*devicev1.RotateCredentialsResponse, error) {
	credentials, err := s.service.Rotate(ctx, req.GetOrganisationId(), req.GetDeviceId())
	if err != nil {
		return nil, err
	}
	return &devicev1.RotateCredentialsResponse{Credentials: credentialsMessage(credentials)}, nil
}

// RevokeDevice makes a device's credentials worthless.
func (s *Server) RevokeDevice(ctx context.Context, req *devicev1.RevokeDeviceRequest) (*devicev1.RevokeDeviceResponse, error) {
	if err := s.service.Revoke(ctx, req.GetOrganisationId(), req.GetDeviceId()); err != nil {
		return nil, err
	}
	return &devicev1.RevokeDeviceResponse{}, nil
}

// PutDefaultPlaylist sets what a device plays.
func (s *Server) PutDefaultPlaylist(ctx context.Context, req *devicev1.PutDefaultPlaylistRequest) (*devicev1.PutDefaultPlaylistResponse, error) {
	items := service.Messages(req.GetItems(), func(i *devicev1.PlaylistItem) device.Item {
		return device.Item{CreativeID: i.GetCreativeId(), URL: i.GetUrl(), SHA256: i.GetSha256(), MediaType: i.GetMediaType(), DurationMS: int(i.GetDurationMs())}
	})
	put, err := s.service.PutPlaylist(ctx, req.GetOrganisationId(), req.GetDeviceId(), items)
	if err != nil {
		return nil, err
	}
	return &devicev1.PutDefaultPlaylistResponse{Playlist: playlistMessage(put)}, nil
}

// GetPlaylist returns what a device plays.
func (s *Server) GetPlaylist(ctx context.Context, req *devicev1.GetPlaylistRequest) (*devicev1.GetPlaylistResponse, error) {
	found, err := s.service.FindPlaylist(ctx, req.GetOrganisationId(), req.GetDeviceId())
	if err != nil {
		return nil, err
	}
	return &devicev1.GetPlaylistResponse{Playlist: playlistMessage(found)}, nil
}

// ListPlays returns a page of what a device played.
func (s *Server) ListPlays(ctx context.Context, req *devicev1.ListPlaysRequest) (*devicev1.ListPlaysResponse, error) {
	span := device.Span{From: timeOf(req.GetFromTime()), To: timeOf(req.GetToTime())}
	found, next, err := s.service.ListPlays(ctx, req.GetOrganisationId(), req.GetDeviceId(), span, service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &devicev1.ListPlaysResponse{Hours: service.Messages(found, func(h device.Hour) *devicev1.HourOfPlays {
		return &devicev1.HourOfPlays{
			HourTime: timestamppb.New(h.Time), CreativeId: h.CreativeID, Plays: h.Plays, CountedPlays: h.Counted, DurationMs: h.Duration.Milliseconds(),
		}
	}), NextPageToken: next}, nil
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// moment is unset for the zero time.
func moment(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func settings(m *devicev1.DeviceSettings) device.Settings {
	return device.Settings{
		Name:       m.GetName(),
		Place:      device.Place{Latitude: m.GetPlace().GetLatitude(), Longitude: m.GetPlace().GetLongitude(), Address: m.GetPlace().GetAddress()},
		VenueType:  m.GetVenueType(),
		Screen:     device.Screen{Width: int(m.GetScreen().GetWidthPx()), Height: int(m.GetScreen().GetHeightPx())},
		LoopLength: time.Duration(m.GetLoopLengthSeconds()) * time.Second,
		SlotLength: time.Duration(m.GetSlotLengthSeconds()) * time.Second,
		SlotPrice:  device.Price{AmountMinor: m.GetSlotPrice().GetAmountMinor(), Currency: m.GetSlotPrice().GetCurrency()},
		TimeZone:   m.GetTimeZone(),
		Hours: service.Messages(m.GetHours(), func(h *devicev1.OpeningHours) airtime.Opening {
			return airtime.Opening{Weekday: int(h.GetWeekday()), Open: int(h.GetOpenMinute()), Close: int(h.GetCloseMinute())}
		}),
	}
}

func settingsMessage(s device.Settings) *devicev1.DeviceSettings {
	return &devicev1.DeviceSettings{
		Name:              s.Name,
		Place:             &devicev1.Place{Latitude: s.Place.Latitude, Longitude: s.Place.Longitude, Address: s.Place.Address},
		VenueType:         s.VenueType,
		Screen:            &devicev1.Screen{WidthPx: int32(s.Screen.Width), HeightPx: int32(s.Screen.Height)},
		LoopLengthSeconds: int32(s.LoopLength / time.Second),
		SlotLengthSeconds: int32(s.SlotLength / time.Second),
		SlotPrice:         &devicev1.Price{AmountMinor: s.SlotPrice.AmountMinor, Currency: s.SlotPrice.Currency},
		TimeZone:          s.TimeZone,
		Hours: service.Messages(s.Hours, func(h airtime.Opening) *devicev1.OpeningHours {
			return &devicev1.OpeningHours{Weekday: devicev1.Weekday(h.Weekday), OpenMinute: int32(h.Open), CloseMinute: int32(h.Close)}
		}),
	}
}

func stateOf(s devicev1.DeviceState) device.State {
	switch s {
	case devicev1.DeviceState_DEVICE_STATE_UNCLAIMED:
		return device.Unclaimed
	case devicev1.DeviceState_DEVICE_STATE_CLAIMED:
		return device.Claimed
	case devicev1.DeviceState_DEVICE_STATE_REVOKED:
		return device.Revoked
	default:
		return ""
	}
}

func stateMessage(s device.State) devicev1.DeviceState {
	return devicev1.DeviceState(devicev1.DeviceState_value["DEVICE_STATE_"+string(s)])
}

func deviceMessage(d device.Device) *devicev1.Device {
	return &devicev1.Device{
		DeviceId: d.ID, OrganisationId: d.OrganisationID, Settings: settingsMessage(d.Settings), State: stateMessage(d.State),
		Presence: &devicev1.Presence{Online: d.Presence.Online, SinceTime: moment(d.Presence.Since)},
		Revision: d.Revision, CreateTime: timestamppb.New(d.CreateTime), UpdateTime: timestamppb.New(d.UpdateTime), ClaimTime: moment(d.ClaimTime),
	}
}

func credentialsMessage(c device.Credentials) *devicev1.Credentials {
	return &devicev1.Credentials{DeviceId: c.DeviceID, Secret: c.Secret}
}

func playlistMessage(p device.Playlist) *devicev1.Playlist {
	return &devicev1.Playlist{Version: p.Version, UpdateTime: moment(p.UpdateTime), Items: service.Messages(p.Items, func(i device.Item) *devicev1.PlaylistItem {
		return &devicev1.PlaylistItem{CreativeId: i.CreativeID, Url: i.URL, Sha256: i.SHA256, MediaType: i.MediaType, DurationMs: int32(i.DurationMS)}
	})}
}
