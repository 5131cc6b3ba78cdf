package sim

import (
	"context"
	"math"
	"time"

	"steward/internal/agent/host"
)

// day is the period of what people's work makes of a gateway's load.
const day = 24 * time.Hour

// Metrics follow the time of day, with noise that is the same for the same device and minute.
func (d *Device) Metrics(ctx context.Context) ([]host.Metric, error) {
	return d.metricsAt(d.fleet.cfg.Now()), ctx.Err()
}

// Remember makes the device come with what it has measured over the time before, as one that was offline.
func (d *Device) Remember(over, every time.Duration) { d.remembers, d.every = over, every }

// Recorded are the measurements to remember, oldest first; agents of simulated devices send them at
// their start.
func (d *Device) Recorded() []host.Measurement {
	if d.remembers == 0 {
		return nil
	}
	now := d.fleet.cfg.Now()
	var out []host.Measurement
	for at := now.Add(-d.remembers).Truncate(d.every).Add(d.every); at.Before(now); at = at.Add(d.every) {
		out = append(out, host.Measurement{At: at, Metrics: d.metricsAt(at)})
	}
	return out
}

func (d *Device) metricsAt(now time.Time) []host.Metric {
	busy := d.busy(now)
	m := d.model
	var out []host.Metric
	add := func(name, unit string, value float64, attributes map[string]string) {
		out = append(out, host.Metric{Name: name, Unit: unit, Value: value, Attributes: attributes})
	}
	cpu := clamp(0.04+0.35*busy+0.05*d.noise(now, 1), 0.005, 1)
	add(host.MetricCPU, "1", cpu, nil)
	add(host.MetricLoad, "{process}", cpu*float64(m.cores)*1.2, nil)
	add(host.MetricMemoryLimit, "By", float64(m.memoryBytes), nil)
	add(host.MetricMemoryUsage, "By", math.Round(float64(m.memoryBytes)*clamp(0.3+0.15*busy+0.03*d.noise(now, 2), 0, 0.98)), nil)
	root := map[string]string{host.AttrMount: "/"}
	used := clamp(0.25+0.3*d.share(3)+d.daysOn(now)*0.0004, 0, 0.97)
	if d.faults.diskFull() {
		used = 1
	}
	add(host.MetricDiskLimit, "By", float64(m.diskBytes), root)
	add(host.MetricDiskUsage, "By", math.Round(float64(m.diskBytes)*used), root)
	add(host.MetricTemperature, "Cel", math.Round((34+18*cpu+6*busy+1.5*d.noise(now, 4))*10)/10, map[string]string{host.AttrSensor: "cpu"})
	if m.watts > 0 {
		add(host.MetricPower, "W", math.Round((m.watts*(1+0.6*cpu)+0.1*d.noise(now, 5))*100)/100, map[string]string{host.AttrSensor: "input"})
	}
	if m.battery {
		add(host.MetricBattery, "1", clamp(0.97-0.05*busy, 0, 1), map[string]string{host.AttrSensor: "buffer"})
	}
	add(host.MetricUptime, "s", math.Round(now.Sub(d.facts.dayZero).Seconds()), nil)
	for direction, rate := range map[string]float64{"receive": 2200, "transmit": 900} {
		out = append(out, host.Metric{
			Name: host.MetricNetwork, Unit: "By", Value: d.bytes(now, rate), Cumulative: true,
			Attributes: map[string]string{host.AttrDevice: "eth0", host.AttrDirection: direction},
		})
	}
	return out
}

// busy is 0 at night and 1 in the middle of the day.
func (d *Device) busy(now time.Time) float64 {
	share := float64(now.UnixNano()%int64(day))/float64(day) + d.phase
	return 0.5 - 0.5*math.Cos(2*math.Pi*share)
}

// bytes is a counter whose rate follows busy: the integral of rate × (0.3 + busy), so it never falls.
func (d *Device) bytes(now time.Time, rate float64) float64 {
	seconds := now.Sub(d.facts.dayZero).Seconds()
	omega := 2 * math.Pi / day.Seconds()
	start := float64(d.facts.dayZero.Unix()%int64(day.Seconds())) + d.phase*day.Seconds()
	integral := 0.8*seconds - 0.5/omega*(math.Sin(omega*(start+seconds))-math.Sin(omega*start))
	return math.Round(rate * (0.5 + d.share(6)) * integral)
}

func (d *Device) daysOn(now time.Time) float64 { return now.Sub(d.facts.dayZero).Hours() / 24 }

// noise is between -1 and 1, the same within one minute.
func (d *Device) noise(now time.Time, kind uint64) float64 {
	return 2*unit(d.seed^uint64(now.Unix()/60)*0x9e3779b97f4a7c15^kind) - 1
}

// share is between 0 and 1, a property of the device.
func (d *Device) share(kind uint64) float64 { return unit(d.seed ^ kind*0xbf58476d1ce4e5b9) }

// unit mixes the bits (SplitMix64) to a number from 0 to 1.
func unit(x uint64) float64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return float64(x>>11) / (1 << 53)
}

func clamp(v, least, most float64) float64 { return max(least, min(most, v)) }
