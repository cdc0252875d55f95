-- Gives up the lock, or the place in the line for it, and wakes the next: 1 if it was held by this token, or by
-- anybody where that is enough; {"type", type} where the key is no lock.
local key, queue, seen, called, wake, second = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local token, anybody = ARGV[1], ARGV[2] == '1'

local kind = redis.call('TYPE', key).ok
if kind ~= 'string' and kind ~= 'none' then return {'type', kind} end
local value = redis.call('GET', key)
local held = value and string.find(value, '"token":"' .. token .. '"', 1, true)
if anybody then held = redis.call('EXISTS', key, second) > 0 end
if held then redis.call('DEL', key) end
local last = redis.call('GET', second)
if anybody or (last and string.find(last, '"token":"' .. token .. '"', 1, true)) then redis.call('DEL', second) end
redis.call('ZREM', queue, token)
redis.call('ZREM', seen, token)
redis.call('DEL', wake .. token)
if redis.call('GET', called) == token then redis.call('DEL', called) end
if redis.call('EXISTS', key, called) == 0 then
    drop_silent(queue, seen)
    call_first(queue, called, wake)
end
return held and 1 or 0
