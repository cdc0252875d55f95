-- One try to take the lock: {"taken", fence}, {"busy", value, pttl, ahead, arrival}, or {"type", type}.
local key, counter, queue, seen, wake, command = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local token, before_fence, after_fence, ttl, floor, queues, arrival, over, silence =
    ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1', ARGV[7], ARGV[8], ARGV[9]

local kind = redis.call('TYPE', key).ok
if kind ~= 'string' and kind ~= 'none' then return {'type', kind} end
local value, left = redis.call('GET', key), redis.call('PTTL', key)

-- The reply to an earlier try was lost.
if value and string.find(value, '"token":"' .. token .. '"', 1, true) then
    redis.call('PEXPIRE', key, ttl)
    return {'taken', string.match(value, '|gpuctl1|{"fence":(%d+)')}
end
-- Proved to be over by one who could tell; a lock without an end is nobody's to take.
if value and value == over and left ~= -1 then value = false end
-- Its time is over, and the command under it may still be at work: told with -2 as the time left.
if not value and left == -2 then
    value = redis.call('GET', command)
    if value == over then value = false end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', seen, '-inf', now - silence)) do
    redis.call('ZREM', queue, silent)
    redis.call('ZREM', seen, silent)
end
local ahead
if queues then
    -- One that was silent for too long comes back to its old place.
    if arrival == '' then arrival = string.format('%.0f', time[1] * 1000000 + time[2]) end
    redis.call('ZADD', queue, 'NX', arrival, token)
    redis.call('ZADD', seen, now, token)
    redis.call('PEXPIRE', queue, 60000)
    redis.call('PEXPIRE', seen, 60000)
    ahead = redis.call('ZRANK', queue, token)
else
    ahead = redis.call('ZCARD', queue)
end
if value or ahead > 0 then return {'busy', value or '', left, ahead, arrival} end

local fence = math.max(tonumber(redis.call('GET', counter)) or 0, tonumber(floor)) + 1
fence = string.format('%.0f', fence)
redis.call('SET', counter, fence)
redis.call('SET', key, before_fence .. fence .. after_fence, 'PX', ttl)
redis.call('ZREM', queue, token)
redis.call('ZREM', seen, token)
redis.call('DEL', wake, command)
return {'taken', fence}
