package main

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/qaexchange/notification"
)

var colours = []color.Color{
	color.RGBA{R: 0x1b, G: 0x6c, B: 0xa8, A: 0xff},
	color.RGBA{R: 0xf2, G: 0xa5, B: 0x41, A: 0xff},
	color.RGBA{R: 0xc4, G: 0x4e, B: 0x52, A: 0xff},
	color.RGBA{R: 0x55, G: 0xa8, B: 0x68, A: 0xff},
}

// plots writes what the results allow to be drawn, of the systems with the same
// encoder.
func plots(dir string, results []outcome) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	results = slices.DeleteFunc(slices.Clone(results), func(o outcome) bool { return encoderOf(o.System) != ownEncoder.name })
	if all := of(results, "flat", func(o outcome) bool { return slices.Contains(flatPublishers, o.Publishers) }); len(all) > 0 {
		if err := plotThroughput(filepath.Join(dir, "throughput.svg"), all); err != nil {
			return err
		}
	}
	paced := of(results, "paced", nil)
	for _, rate := range valuesIn(paced, func(o outcome) int { return o.Rate }) {
		found := of(paced, "paced", func(o outcome) bool { return o.Rate == rate })
		err := plotLatency(filepath.Join(dir, fmt.Sprintf("latency-%d.svg", rate)), fmt.Sprintf("Latency from the due time at %s msg/s", thousands(float64(rate))), found, notification.NumPriorities)
		if err != nil {
			return err
		}
	}
	if flood := of(results, "flood", nil); len(flood) > 0 {
		return plotLatency(filepath.Join(dir, "flood.svg"), "P0 from the due time under a flood of P1", flood, 1)
	}
	return nil
}

func newPlot(title, y string, systems []string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.Y.Label.Text = title, y
	p.Legend.Top = true
	p.Legend.Padding = vg.Points(3)
	p.NominalX(systems...)
	p.Add(plotter.NewGrid())
	return p
}

// plotThroughput draws a group of bars per system, a bar per number of
// publishers.
func plotThroughput(file string, found []outcome) error {
	systems := systemsIn(found)
	p := newPlot("Publish to JSON at the receiver, flat out", "thousand messages per second", systems)
	p.Y.Min, p.X.Min, p.X.Max = 0, -0.5, float64(len(systems))-0.5
	p.Y.Tick.Marker = plot.TickerFunc(func(low, high float64) (ticks []plot.Tick) {
		for v := 0.0; v <= high; v += 100 {
			ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.0f", v)})
		}
		return ticks
	})
	counts := valuesIn(found, func(o outcome) int { return o.Publishers })
	width := vg.Points(48 / float64(len(counts)))
	top := 0.0
	for i, publishers := range counts {
		values := make(plotter.Values, len(systems))
		for s, name := range systems {
			mine := of(bySystem(found, name), "flat", func(o outcome) bool { return o.Publishers == publishers })
			values[s] = median(mine, perSecond) / 1e3
			top = max(top, values[s])
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		bars.Color, bars.LineStyle.Width = colours[i%len(colours)], 0
		bars.Offset = width * vg.Length(float64(i)-float64(len(counts)-1)/2)
		p.Add(bars)
		p.Legend.Add(fmt.Sprintf("publishers: %d", publishers), bars)
	}
	p.Y.Max = top * 1.15
	return p.Save(9*vg.Inch, 4*vg.Inch, file)
}

// plotLatency draws, per system and lane, a line from the median up to the 99.9th
// percentile with a mark at the 99th, on a logarithmic scale.
func plotLatency(file, title string, found []outcome, lanes int) error {
	systems := systemsIn(found)
	p := newPlot(title+": p50, p99, p99.9", "milliseconds", systems)
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	low, high := math.Inf(1), 0.0
	for lane := range lanes {
		var points plotter.XYs
		for s, name := range systems {
			mine := bySystem(found, name)
			at := func(q func(latency) float64) float64 {
				return max(median(mine, func(o outcome) float64 { return q(o.FromDue[lane]) })/1e3, 0.001)
			}
			x := float64(s) + 0.14*(float64(lane)-float64(lanes-1)/2)
			p50, p99, p999 := at(func(l latency) float64 { return l.P50 }), at(func(l latency) float64 { return l.P99 }), at(func(l latency) float64 { return l.P999 })
			points = append(points, plotter.XY{X: x, Y: p50}, plotter.XY{X: x, Y: p99}, plotter.XY{X: x, Y: p999})
			low, high = min(low, p50), max(high, p999)
			line, err := plotter.NewLine(points[len(points)-3:])
			if err != nil {
				return err
			}
			line.Color, line.Width = colours[lane], vg.Points(2)
			p.Add(line)
		}
		scatter, err := plotter.NewScatter(points)
		if err != nil {
			return err
		}
		scatter.Color, scatter.Radius, scatter.Shape = colours[lane], vg.Points(3), draw.CircleGlyph{}
		p.Add(scatter)
		p.Legend.Add(notification.Priority(lane).String(), scatter)
	}
	p.Y.Min, p.Y.Max = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high)+0.1))
	p.X.Min, p.X.Max = -0.5, float64(len(systems))-0.5
	return p.Save(9*vg.Inch, 4.5*vg.Inch, file)
}
