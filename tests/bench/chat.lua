-- What wrk asks and looks at: one chat over and over.
-- Arguments: the body, the text that every answer has, the number of connections.

-- A saturated uvloop takes one new connection each time round: all are made before the first request.
local HEAD_START = 0.5 -- seconds, of which the results tell nothing

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  wrk.method, wrk.body = "POST", arguments[1]
  wrk.headers["content-type"] = "application/json"
  expected, waiting, wrong = arguments[2], tonumber(arguments[3]), 0
end

function delay()
  waiting = waiting - 1
  return waiting >= 0 and 1e3 * HEAD_START or 0
end

function response(status, headers, body)
  if status ~= 200 or not body:find(expected, 1, true) then
    wrong = wrong + 1
  end
end

function done(summary, latency)
  local errors, unexpected = summary.errors, 0
  for _, thread in ipairs(threads) do
    unexpected = unexpected + thread:get("wrong")
  end
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "p50_ms": %f, "p95_ms": %f, "p99_ms": %f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6 - HEAD_START,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    unexpected + errors.connect + errors.read + errors.write + errors.timeout
  ))
end
