package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/service"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/device"
)

// SumPlays returns how often booked lines were played.
func (s *Server) SumPlays(ctx context.Context, req *devicev1.SumPlaysRequest) (*devicev1.SumPlaysResponse, error) {
	lines := service.Messages(req.GetLines(), func(l *devicev1.LinePeriod) device.LinePeriod {
		return device.LinePeriod{DeviceID: l.GetDeviceId(), LineID: l.GetLineId(), Span: device.Span{From: timeOf(l.GetFromTime()), To: timeOf(l.GetToTime())}}
	})
	sums, err := s.service.SumPlays(ctx, lines, req.GetByDay())
	if err != nil {
		return nil, err
	}
	return &devicev1.SumPlaysResponse{Sums: service.Messages(sums, func(p device.LinePlays) *devicev1.LinePlays {
		m := &devicev1.LinePlays{LineId: p.LineID, Plays: p.Plays, CountedPlays: p.Counted, DurationMs: p.Duration.Milliseconds()}
		if p.Day != (airtime.Date{}) {
			m.Day = p.Day.String()
		}
		return m
	})}, nil
}

// ListBookedLines returns a page of the lines that devices know of.
func (s *Server) ListBookedLines(ctx context.Context, req *devicev1.ListBookedLinesRequest) (*devicev1.ListBookedLinesResponse, error) {
	found, next, err := s.service.ListLines(ctx, req.GetDeviceIds(), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &devicev1.ListBookedLinesResponse{Lines: service.Messages(found, lineMessage), NextPageToken: next}, nil
}

// PutBookedLines makes these the lines of a device, and no others.
func (s *Server) PutBookedLines(ctx context.Context, req *devicev1.PutBookedLinesRequest) (*devicev1.PutBookedLinesResponse, error) {
	lines := make([]device.BookedLine, len(req.GetLines()))
	for i, m := range req.GetLines() {
		var err error
		if lines[i], err = lineOf(m); err != nil {
			return nil, device.ErrLine.WithField(fmt.Sprintf("lines[%d]", i), "line.possible", err.Error())
		}
	}
	changed, err := s.service.PutLines(ctx, req.GetDeviceId(), lines)
	if err != nil {
		return nil, err
	}
	return &devicev1.PutBookedLinesResponse{Changed: int32(changed)}, nil
}

// lineOf is a line that Check has to look at. An error is that its dates are none.
func lineOf(m *orderv1.BookedLine) (device.BookedLine, error) {
	l := device.BookedLine{
		ID: m.GetLineId(), DeviceID: m.GetDeviceId(), Revision: m.GetRevision(),
		// As the database keeps them, so that they can be compared.
		Start: timeOf(m.GetStartTime()).Truncate(time.Microsecond), End: timeOf(m.GetEndTime()).Truncate(time.Microsecond), Removed: m.GetRemoved(), TakenDown: m.GetTakenDown(),
		Slots: service.Messages(m.GetSlots(), func(slot int32) int { return int(slot) }),
		Dayparts: service.Messages(m.GetDayparts(), func(p *orderv1.Daypart) airtime.Opening {
			return airtime.Opening{Weekday: int(p.GetWeekday()), Open: int(p.GetStartMinute()), Close: int(p.GetEndMinute())}
		}),
	}
	var first, last error
	l.Flight.First, first = airtime.ParseDate(m.GetFlight().GetStartDate())
	l.Flight.Last, last = airtime.ParseDate(m.GetFlight().GetEndDate())
	if i := m.GetShowing(); i != nil {
		l.Showing = &device.Item{CreativeID: i.GetShowingId(), URL: i.GetUrl(), SHA256: i.GetSha256(), MediaType: i.GetMediaType(), DurationMS: int(i.GetDurationMs())}
	}
	return l, errors.Join(first, last)
}

func lineMessage(l device.BookedLine) *orderv1.BookedLine {
	m := &orderv1.BookedLine{
		LineId: l.ID, DeviceId: l.DeviceID, Revision: l.Revision,
		Flight: &orderv1.Flight{StartDate: l.Flight.First.String(), EndDate: l.Flight.Last.String()},
		Dayparts: service.Messages(l.Dayparts, func(o airtime.Opening) *orderv1.Daypart {
			return &orderv1.Daypart{Weekday: int32(o.Weekday), StartMinute: int32(o.Open), EndMinute: int32(o.Close)}
		}),
		Slots:     service.Messages(l.Slots, func(slot int) int32 { return int32(slot) }),
		StartTime: timestamppb.New(l.Start), EndTime: timestamppb.New(l.End), Removed: l.Removed, TakenDown: l.TakenDown,
	}
	if i := l.Showing; i != nil {
		m.Showing = &orderv1.Showing{ShowingId: i.CreativeID, Url: i.URL, Sha256: i.SHA256, MediaType: i.MediaType, DurationMs: int32(i.DurationMS)}
	}
	return m
}
