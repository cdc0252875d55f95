-- The line of those who wait; put before the scripts. One that has not looked for SILENCE is gone or
-- stopped, and one that is called has CALL to take the lock; both come back to their old place when they look again.
local SILENCE, CALL = 1400, 400
-- The second record is waited for by the waiters' own clocks: this has only to outlive any jump of the calendar.
local SECOND = 86400000

local function now()
    local time = redis.call('TIME')
    return time[1] * 1000000 + time[2]
end

-- The server's replication ID, where that is known and another than that of the server which gave the lock last: by a
-- fail-over, so that it does not know who has it since.
local function another_id(server)
    local info, known = redis.pcall('INFO', 'replication'), redis.call('GET', server)
    if type(info) ~= 'string' then return end
    local id, former = string.match(info, 'master_replid:(%x+)'), string.match(info, 'master_replid2:(%x*[1-9a-f]%x*)')
    return id ~= (known or not former and id) and id or nil, id
end

local function drop_silent(queue, seen)
    for _, silent in ipairs(redis.call('ZRANGEBYSCORE', seen, '-inf', now() / 1000 - SILENCE)) do
        redis.call('ZREM', queue, silent)
        redis.call('ZREM', seen, silent)
    end
end

-- What others have seen of it is not what it is now. A server without memory takes no new one, and lets nobody take the
-- lock either.
local function renew_second(second, last, value)
    local count = tonumber(last and string.match(last, '^%d+ ') or 0)
    redis.pcall('SET', second, string.format('%d', count + 1) .. ' ' .. value, 'PX', SECOND)
end

-- Out of the line, and awake: nobody else may take the lock until it has, or has had its time. One who has waited longer
-- for the machine's lock of a place comes before it, and is awake.
local function call_first(queue, called, wake, place, waited)
    local first, arrival = unpack(redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES'))
    if waited and (not first or now() - waited < tonumber(arrival)) then
        redis.pcall('SET', called, place, 'PX', CALL)
        return
    end
    if not first then return end
    redis.call('ZREM', queue, first)
    redis.call('DEL', wake .. first)
    -- A server without memory refuses both; the waiter looks again by itself.
    redis.pcall('SET', called, first, 'PX', CALL)
    redis.pcall('LPUSH', wake .. first, '1')
    redis.call('PEXPIRE', wake .. first, 1000)
end

